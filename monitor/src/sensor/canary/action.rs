//! The canary's process: this program, started as `keytrail canary`. On each line that it receives
//! it does what the probes must report, on loopback and in a directory of the agent, and answers
//! which steps it could do.

use super::{mark::CanaryMark, step::CanaryStep};
use std::{
    fs,
    hint::black_box,
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

/// Maximum time to wait on loopback.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A loopback address of its own, where no name server listens.
const DNS_SERVER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 107, 116, 53)), 53);

/// Serves until its input ends. Each line is a round's number and a directory.
pub fn serve() -> io::Result<()> {
    // It ends with the agent.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let sockets = CanarySockets::bind();
    let mut output = io::stdout();
    writeln!(output, "ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let Some((number, directory)) = line.split_once(' ') else {
            return Err(io::Error::other("not a round"));
        };
        let mark = CanaryMark::parse(number).ok_or_else(|| io::Error::other("not a number"))?;
        for step in CanaryStep::ALL {
            if step.is_start() {
                continue;
            }
            match perform(step, mark, Path::new(directory), &sockets) {
                Ok(()) => writeln!(output, "ok {}", step.name())?,
                Err(error) => writeln!(output, "failed {} {error}", step.name())?,
            }
        }
        writeln!(output, "end")?;
    }
    Ok(())
}

fn perform(
    step: CanaryStep,
    mark: CanaryMark,
    directory: &Path,
    sockets: &CanarySockets,
) -> io::Result<()> {
    match step {
        CanaryStep::Exec | CanaryStep::Variable => Ok(()),
        CanaryStep::Open => open(&directory.join(mark.directory())),
        CanaryStep::Memory => ask_for_memory(),
        CanaryStep::ConnectV4 => connect(sockets.v4.as_ref()).map(drop),
        CanaryStep::ConnectV6 => connect(sockets.v6.as_ref()).map(drop),
        CanaryStep::DatagramV4 => send(sockets.udp_v4.as_ref()),
        CanaryStep::DatagramV6 => send(sockets.udp_v6.as_ref()),
        CanaryStep::Refused => connect_to_nobody(sockets),
        CanaryStep::Hello => transmit(sockets, &mark.client_hello()),
        CanaryStep::Plaintext => transmit(sockets, mark.request().as_bytes()),
        CanaryStep::Dns => resolve(mark),
        CanaryStep::TlsWrite => {
            let request = mark.request();
            let object = 0u8;
            black_box(tls_write(
                &raw const object,
                request.as_ptr(),
                request.len(),
            ));
            Ok(())
        }
    }
}

/// Opens a file that was not opened before: the probes count repeated opens.
fn open(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    let file = folder.join(".netrc");
    let opened = fs::write(&file, b"").and_then(|()| fs::File::open(&file));
    fs::remove_dir_all(folder)?;
    opened.map(drop)
}

/// Asks for a byte of the agent's memory where there is none. The kernel checks whether that is
/// allowed before it looks at the address.
fn ask_for_memory() -> io::Result<()> {
    let parent = rustix::process::getppid()
        .ok_or_else(|| io::Error::other("it has no parent in its PID namespace"))?;
    let mut byte = 0u8;
    let local = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 1,
    };
    // SAFETY: both describe one byte; the kernel checks the remote address, and nothing is mapped
    // at 0.
    let read = unsafe {
        libc::process_vm_readv(
            parent.as_raw_nonzero().get(),
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    match io::Error::last_os_error() {
        _ if read >= 0 => Ok(()),
        error if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        error => Err(error),
    }
}

/// Both ends of a new connection.
fn connect(listener: Option<&TcpListener>) -> io::Result<(TcpStream, TcpStream)> {
    let listener = listener.ok_or(io::ErrorKind::AddrNotAvailable)?;
    // Somebody may have filled the queue.
    listener.set_nonblocking(true)?;
    while listener.accept().is_ok() {}
    let client = TcpStream::connect_timeout(&listener.local_addr()?, TIMEOUT)?;
    loop {
        let (server, peer) = listener.accept()?;
        if peer == client.local_addr()? {
            server.set_nonblocking(false)?;
            return Ok((client, server));
        }
    }
}

fn transmit(sockets: &CanarySockets, bytes: &[u8]) -> io::Result<()> {
    let (mut client, mut server) = connect(sockets.v4.as_ref())?;
    client.set_write_timeout(Some(TIMEOUT))?;
    server.set_read_timeout(Some(TIMEOUT))?;
    client.write_all(bytes)?;
    let mut received = vec![0; bytes.len()];
    server.read_exact(&mut received)
}

fn send(receiver: Option<&UdpSocket>) -> io::Result<()> {
    let to = receiver
        .ok_or(io::ErrorKind::AddrNotAvailable)?
        .local_addr()?;
    // A new socket: the probe counts repeated sends of one.
    let sender = UdpSocket::bind((to.ip(), 0))?;
    sender.send_to(b"canary", to).map(drop)
}

fn connect_to_nobody(sockets: &CanarySockets) -> io::Result<()> {
    // Bound, but not listening: the port stays free of others.
    let unused = sockets
        .unused
        .as_ref()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let address = rustix::net::getsockname(unused)?;
    let address = SocketAddr::try_from(address)?;
    match TcpStream::connect_timeout(&address, TIMEOUT) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) => Err(io::Error::other("somebody listens")),
        Err(error) => Err(error),
    }
}

/// Asks a name server that is this process.
fn resolve(mark: CanaryMark) -> io::Result<()> {
    let server = UdpSocket::bind(DNS_SERVER)?;
    server.set_read_timeout(Some(TIMEOUT))?;
    let client = UdpSocket::bind((DNS_SERVER.ip(), 0))?;
    client.set_read_timeout(Some(TIMEOUT))?;
    client.send_to(&mark.dns_query(), DNS_SERVER)?;
    let (query, own) = (mark.dns_query(), client.local_addr()?);
    let mut received = [0; 512];
    // Anybody may send something to the server.
    loop {
        let (len, peer) = server.recv_from(&mut received)?;
        if peer == own && received[..len] == query {
            break;
        }
    }
    server.send_to(&mark.dns_response(), own)?;
    client.recv_from(&mut [0; 512]).map(drop)
}

/// The function of this program that has the probe of a TLS library's write. Nothing else calls it.
#[inline(never)]
pub(super) extern "C" fn tls_write(object: *const u8, bytes: *const u8, len: usize) -> usize {
    black_box((object, bytes, len)).2
}

/// What a call of a function with a probe costs, if the program does nothing: the median of some.
pub fn trap_time() -> Duration {
    const CALLS: usize = 63;
    let mut times = [Duration::ZERO; CALLS];
    for time in &mut times {
        let began = Instant::now();
        // Nothing to search.
        tls_write(std::ptr::null(), std::ptr::null(), 0);
        *time = began.elapsed();
    }
    times.sort();
    times[CALLS / 2]
}

/// What the canary connects to.
struct CanarySockets {
    v4: Option<TcpListener>,
    v6: Option<TcpListener>,
    udp_v4: Option<UdpSocket>,
    udp_v6: Option<UdpSocket>,
    unused: Option<std::os::fd::OwnedFd>,
}

impl CanarySockets {
    /// A machine may have only one of the two protocols.
    fn bind() -> Self {
        Self {
            v4: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok(),
            v6: TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok(),
            udp_v4: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).ok(),
            udp_v6: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).ok(),
            unused: bind_unused().ok(),
        }
    }
}

fn bind_unused() -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok(socket)
}
