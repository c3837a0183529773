//! One process of a scenario: it obtains a credential in one way, and connects in one way, using
//! exactly the named system calls.

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use io_uring::{IoUring, opcode, types};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, Stream,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    ffi::CString,
    fs::File,
    io::{Read as _, Write as _},
    mem::{MaybeUninit, size_of, zeroed},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

#[derive(Debug, Parser)]
struct ActorArguments {
    /// How the file is opened
    #[arg(long, value_enum)]
    get: Option<GetMethod>,
    #[arg(long)]
    path: Option<PathBuf>,
    /// How it connects
    #[arg(long, value_enum)]
    connect: Option<ConnectMethod>,
    #[arg(long)]
    to: Option<SocketAddr>,
    /// The server name in the ClientHello
    #[arg(long)]
    name: Option<String>,
    /// How another process is read
    #[arg(long, value_enum)]
    look: Option<LookMethod>,
    #[arg(long)]
    pid: Option<i32>,
    /// An address in the other process
    #[arg(long, default_value_t = 0)]
    address: usize,
    /// Mount point of procfs
    #[arg(long, default_value = "/proc")]
    procfs: PathBuf,
    /// Print a line, and wait until standard input ends
    #[arg(long)]
    wait: bool,
    /// Open the file at descriptor 5, change to another user, and execute this program again with
    /// the remaining arguments
    #[arg(long)]
    inherit: Option<PathBuf>,
    /// Keep the file at `--path` open, connect to `--to`, print a line, and wait until standard
    /// input ends
    #[arg(long)]
    hold: bool,
    /// Repeat this until standard input ends; print how often
    #[arg(long, value_enum)]
    storm: Option<StormKind>,
    /// Repeat it only this often
    #[arg(long)]
    times: Option<u64>,
    /// Delete the executable first
    #[arg(long)]
    unlink: bool,
    /// Copy the executable to memory, and run it from there with the arguments that follow
    #[arg(long)]
    in_memory: bool,
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum GetMethod {
    Open,
    Openat2,
    Handle,
    Uring,
    Received,
    ProcFd,
    Thread,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConnectMethod {
    Tls,
    Large,
    Cut,
    FastOpen,
    Uring,
    Udp,
    Tcp,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LookMethod {
    Environ,
    Task,
    Mem,
    VmReadv,
    Ptrace,
    Itself,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StormKind {
    /// Fork children that exit at once
    Forks,
    /// Open the file at `--path`
    Opens,
    /// Fork children that each open the file at `--path`
    Readers,
}

fn main() -> Result<()> {
    let act = ActorArguments::parse();
    if let Some(storm) = act.storm {
        return run_storm(storm, &act);
    }
    if act.hold {
        return hold_open(&act);
    }
    if let Some(path) = &act.inherit {
        return inherit(path, &act);
    }
    if act.in_memory {
        return in_memory(&act.arguments);
    }
    if act.unlink {
        std::fs::remove_file(std::env::current_exe()?)?;
    }
    if let (Some(get), Some(path)) = (act.get, &act.path) {
        get_file(get, path)?;
    }
    if let Some(look) = act.look {
        look_at(look, &act)?;
    }
    if let (Some(connect), Some(to)) = (act.connect, act.to) {
        let name = act.name.clone().unwrap_or_default();
        match act.get {
            // Another thread than the one that read.
            Some(GetMethod::Thread) => {
                std::thread::spawn(move || open_connection(connect, to, &name))
                    .join()
                    .map_err(|_| anyhow::anyhow!("the thread panicked"))??
            }
            _ => open_connection(connect, to, &name)?,
        }
    }
    if act.wait {
        // Readable memory at a known address, for processes that read this one.
        static MARK: [u8; 16] = *b"keytrail-lab-mem";
        println!("{:#x}", MARK.as_ptr() as usize);
        std::io::stdin().read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn hold_open(act: &ActorArguments) -> Result<()> {
    let file = File::open(act.path.as_ref().context("--path")?)?;
    let stream = TcpStream::connect(act.to.context("--to")?)?;
    println!("holding");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop((file, stream));
    Ok(())
}

fn run_storm(storm: StormKind, act: &ActorArguments) -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let path = match &act.path {
        Some(path) => CString::new(path.as_os_str().as_bytes())?,
        None => CString::default(),
    };
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    std::thread::spawn(move || {
        // Any result means the end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    // Printed once the storm has started.
    let raging = match storm {
        StormKind::Opens => 2000,
        StormKind::Forks | StormKind::Readers => 200,
    };
    let mut times = 0u64;
    while !over.load(Ordering::Relaxed) && act.times.is_none_or(|most| times < most) {
        let open = || {
            // SAFETY: the path outlives the call.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
            // SAFETY: this closure owns the descriptor.
            unsafe { libc::close(fd) };
        };
        match storm {
            StormKind::Opens => open(),
            StormKind::Forks | StormKind::Readers => {
                // SAFETY: the child only makes async-signal-safe calls.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    if let StormKind::Readers = storm {
                        open();
                    }
                    // SAFETY: ends the child without running the parent's exit handlers.
                    unsafe { libc::_exit(0) };
                }
                // SAFETY: the child belongs to this process.
                unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
            }
        }
        times += 1;
        if times == raging {
            println!("raging");
        }
    }
    if times < raging {
        println!("raging");
    }
    println!("{times}");
    Ok(())
}

fn check_result(result: i64) -> Result<i32> {
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(i32::try_from(result)?)
}

fn read_all(fd: RawFd) -> Result<()> {
    // SAFETY: the descriptor was opened for this, and nothing else owns it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.is_empty() {
        bail!("the file is empty");
    }
    Ok(())
}

fn get_file(get: GetMethod, path: &Path) -> Result<()> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    match get {
        GetMethod::Open => {
            std::fs::read(path)?;
        }
        GetMethod::Thread => {
            let path = path.to_owned();
            std::thread::spawn(move || std::fs::read(path))
                .join()
                .map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        }
        GetMethod::Openat2 => {
            // SAFETY: open_how is plain integers.
            let mut how: libc::open_how = unsafe { zeroed() };
            how.flags = libc::O_RDONLY as u64;
            // SAFETY: the path and the structure outlive the call.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    libc::AT_FDCWD,
                    c_path.as_ptr(),
                    &raw const how,
                    size_of::<libc::open_how>(),
                )
            };
            read_all(check_result(fd).context("openat2")?)?;
        }
        GetMethod::Handle => by_handle(path, &c_path)?,
        GetMethod::Uring => {
            let mut ring = IoUring::new(8).context("io_uring")?;
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c_path.as_ptr())
                .flags(libc::O_RDONLY)
                .build();
            read_all(submit(&mut ring, &open)?)?;
        }
        GetMethod::Received => received(path)?,
        GetMethod::ProcFd => {
            let file = File::open(path)?;
            let again = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            std::fs::read(again)?;
        }
    }
    Ok(())
}

/// `name_to_handle_at` needs no read permission; the open names no path.
fn by_handle(path: &Path, c_path: &CString) -> Result<()> {
    #[repr(C)]
    struct FileHandle {
        head: libc::file_handle,
        room: [u8; 128],
    }
    let mut handle = MaybeUninit::<FileHandle>::zeroed();
    let mut mount = 0;
    let directory = File::open(path.parent().context("a directory")?)?;
    // SAFETY: the structure has the capacity that it states, and outlives the calls.
    let fd = unsafe {
        (*handle.as_mut_ptr()).head.handle_bytes = 128;
        check_result(libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            c_path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            0,
        ))
        .context("name_to_handle_at")?;
        libc::syscall(
            libc::SYS_open_by_handle_at,
            directory.as_raw_fd(),
            handle.as_mut_ptr(),
            libc::O_RDONLY,
        )
    };
    read_all(check_result(fd).context("open_by_handle_at")?)
}

fn submit(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> Result<i32> {
    // SAFETY: the referenced memory outlives the wait for completion.
    unsafe { ring.submission().push(entry)? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().context("no completion")?.result();
    check_result(if result < 0 {
        return Err(std::io::Error::from_raw_os_error(-result).into());
    } else {
        i64::from(result)
    })
}

/// A child that runs another program opens the file and passes the descriptor.
fn received(path: &Path) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: fork, and the child only makes async-signal-safe calls.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(ours);
        let sent = File::open(path)
            .map_err(anyhow::Error::from)
            .and_then(|file| send_descriptor(&theirs, file.as_raw_fd()));
        std::process::exit(i32::from(sent.is_err()));
    }
    drop(theirs);
    let fd = receive_descriptor(&ours)?;
    let mut status = 0;
    // SAFETY: the child belongs to this process.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    read_all(fd)
}

const CONTROL: usize = 64;

fn message(socket: &UnixStream, fd: Option<RawFd>) -> Result<Option<RawFd>> {
    let mut byte = [0u8; 1];
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let mut control = [0u64; CONTROL / 8];
    // SAFETY: msghdr consists of integers and pointers; those set below outlive the calls, and the
    // macros compute addresses inside `control`.
    unsafe {
        let mut header: libc::msghdr = zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as usize;
        if let Some(fd) = fd {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as usize;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
            check_result(libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) as i64)?;
            return Ok(None);
        }
        check_result(libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) as i64)?;
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        if first.is_null() {
            bail!("no descriptor came");
        }
        Ok(Some(
            libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned(),
        ))
    }
}

fn send_descriptor(socket: &UnixStream, fd: RawFd) -> Result<()> {
    message(socket, Some(fd)).map(drop)
}

fn receive_descriptor(socket: &UnixStream) -> Result<RawFd> {
    message(socket, None)?.context("no descriptor came")
}

fn inherit(path: &Path, act: &ActorArguments) -> Result<()> {
    let file = File::open(path)?;
    let mut next = Command::new(std::env::current_exe()?);
    if let (Some(to), Some(name)) = (act.to, &act.name) {
        next.args(["--connect", "tls", "--to", &to.to_string(), "--name", name]);
    }
    let fd = file.as_raw_fd();
    // SAFETY: the calls are safe between fork and exec.
    unsafe {
        next.pre_exec(move || {
            if libc::dup2(fd, 5) < 0 || libc::setuid(1000) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let status = next.status()?;
    if !status.success() {
        bail!("the heir ended with {status}");
    }
    Ok(())
}

fn in_memory(arguments: &[String]) -> Result<()> {
    // SAFETY: the name outlives the call; this function owns the descriptor.
    let mut file = unsafe {
        let fd = check_result(i64::from(libc::memfd_create(c"lab".as_ptr(), 0)))?;
        File::from_raw_fd(fd)
    };
    file.write_all(&std::fs::read(std::env::current_exe()?)?)?;
    let error = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .args(arguments)
        .exec();
    Err(error.into())
}

fn look_at(look: LookMethod, act: &ActorArguments) -> Result<()> {
    let pid = act.pid.unwrap_or(0);
    let of = |file: &str| act.procfs.join(pid.to_string()).join(file);
    match look {
        LookMethod::Environ => {
            std::fs::read(of("environ"))?;
        }
        LookMethod::Task => {
            std::fs::read(of(&format!("task/{pid}/environ")))?;
        }
        LookMethod::Itself => {
            std::fs::read("/proc/self/environ")?;
        }
        LookMethod::Mem => {
            use std::os::unix::fs::FileExt as _;
            let mut bytes = [0u8; 16];
            File::open(of("mem"))?.read_exact_at(&mut bytes, act.address as u64)?;
        }
        LookMethod::VmReadv => {
            let mut bytes = [0u8; 16];
            let local = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let remote = libc::iovec {
                iov_base: act.address as *mut libc::c_void,
                iov_len: bytes.len(),
            };
            // SAFETY: the local buffer has the length given; the kernel checks the remote one.
            let read = unsafe {
                libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0)
            };
            check_result(read as i64).context("process_vm_readv")?;
        }
        LookMethod::Ptrace => {
            let nothing = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: the calls access none of our memory.
            unsafe {
                check_result(libc::ptrace(libc::PTRACE_SEIZE, pid, nothing, nothing))
                    .context("PTRACE_SEIZE")?;
            }
        }
    }
    Ok(())
}

/// Accepts any certificate: the lab's servers sign their own.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn client(name: &str, large: bool) -> Result<ClientConnection> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    if large {
        // At least as large as a hello with a post-quantum key share.
        config.alpn_protocols = (0..60)
            .map(|number| format!("x-keytrail-lab-protocol-number-{number:04}").into_bytes())
            .collect();
    }
    Ok(ClientConnection::new(
        Arc::new(config),
        ServerName::try_from(name.to_owned())?,
    )?)
}

fn open_connection(connect: ConnectMethod, to: SocketAddr, name: &str) -> Result<()> {
    match connect {
        ConnectMethod::Udp => {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.connect(to)?;
            socket.send(b"lab")?;
            Ok(())
        }
        ConnectMethod::Tcp => {
            // A refused connection is part of some scenarios.
            let _ = TcpStream::connect(to);
            Ok(())
        }
        ConnectMethod::Tls | ConnectMethod::Large => {
            let mut tls = client(name, matches!(connect, ConnectMethod::Large))?;
            let mut stream = TcpStream::connect(to)?;
            send_and_receive(&mut tls, &mut stream)
        }
        ConnectMethod::Cut => {
            let mut tls = client(name, false)?;
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            let mut hello = Vec::new();
            tls.write_tls(&mut hello)?;
            let (mut at, mut step) = (0, 1);
            while at < hello.len() {
                let end = (at + step).min(hello.len());
                stream.write_all(&hello[at..end])?;
                (at, step) = (end, 90);
            }
            send_and_receive(&mut tls, &mut stream)
        }
        ConnectMethod::FastOpen => {
            let mut tls = client(name, false)?;
            let mut hello = Vec::new();
            tls.write_tls(&mut hello)?;
            let mut stream = fast_open(to, &hello)?;
            send_and_receive(&mut tls, &mut stream)
        }
        ConnectMethod::Uring => {
            let mut tls = client(name, false)?;
            let mut stream = uring_connect(to)?;
            send_and_receive(&mut tls, &mut stream)
        }
    }
}

fn send_and_receive(tls: &mut ClientConnection, stream: &mut TcpStream) -> Result<()> {
    let mut both = Stream::new(tls, stream);
    both.write_all(b"GET / HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    both.read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("no answer");
    }
    Ok(())
}

fn ipv4(to: SocketAddr) -> Result<libc::sockaddr_in> {
    let SocketAddr::V4(to) = to else {
        bail!("an IPv4 address is needed");
    };
    // SAFETY: sockaddr_in is plain integers.
    let mut address: libc::sockaddr_in = unsafe { zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = to.port().to_be();
    address.sin_addr.s_addr = u32::from(*to.ip()).to_be();
    Ok(address)
}

fn socket() -> Result<RawFd> {
    // SAFETY: the call accesses no memory.
    check_result(i64::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
    }))
}

fn fast_open(to: SocketAddr, first: &[u8]) -> Result<TcpStream> {
    let address = ipv4(to)?;
    let fd = socket()?;
    // SAFETY: the buffer and the address outlive the call.
    let sent = unsafe {
        libc::sendto(
            fd,
            first.as_ptr().cast(),
            first.len(),
            libc::MSG_FASTOPEN,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        )
    };
    check_result(sent as i64).context("sendto with MSG_FASTOPEN")?;
    // SAFETY: this function owns the descriptor.
    Ok(unsafe { TcpStream::from_raw_fd(fd) })
}

fn uring_connect(to: SocketAddr) -> Result<TcpStream> {
    let address = ipv4(to)?;
    let fd = socket()?;
    let mut ring = IoUring::new(8).context("io_uring")?;
    let connect = opcode::Connect::new(
        types::Fd(fd),
        (&raw const address).cast(),
        size_of::<libc::sockaddr_in>() as u32,
    )
    .build();
    submit(&mut ring, &connect)?;
    // SAFETY: this function owns the descriptor.
    Ok(unsafe { TcpStream::from_raw_fd(fd) })
}
