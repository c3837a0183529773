//! A virtual machine: a kernel, a root file system whose changes are discarded, one script.

use super::kernels::KernelImage;
use crate::{
    debian::{Apt, codename},
    setup::tools,
};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The emulator, and the location of its files.
#[derive(Clone, Debug)]
pub struct Qemu {
    binary: PathBuf,
    /// The directory into which it was unpacked; `None` if it is installed.
    root: Option<PathBuf>,
}

/// The result of a script.
#[derive(Debug)]
pub struct VmResult {
    /// The console output.
    pub console: String,
    /// What the script wrote to its report.
    pub report: String,
    /// The script's exit status; `None` if the machine did not get that far.
    pub status: Option<i32>,
    pub took: Duration,
}

/// Printed by `/init` before the script's exit status.
pub const STATUS_MARK: &str = "keytrail-vm-status:";

impl Qemu {
    /// The installed emulator, or Debian's from its backports, unpacked beside the other tools.
    pub fn find() -> Result<Self> {
        const NAME: &str = "qemu-system-x86_64";
        // Older versions crash guests at random.
        let installed = Command::new(NAME)
            .arg("--version")
            .output()
            .ok()
            .and_then(|output| {
                let text = String::from_utf8(output.stdout).ok()?;
                text.split("version ")
                    .nth(1)?
                    .split('.')
                    .next()?
                    .parse::<u32>()
                    .ok()
            })
            .is_some_and(|major| major >= 9);
        if installed {
            return Ok(Self {
                binary: NAME.into(),
                root: None,
            });
        }
        let root = tools().join("qemu");
        let binary = root.join("usr/bin").join(NAME);
        if !binary.is_file() {
            eprintln!("vm: fetching QEMU");
            let release = codename()?;
            let backports = format!("{release}-backports");
            let apt = Apt::new(&[&release, &format!("{release}-security"), &backports])?;
            let wanted: Vec<String> = [
                "qemu-system-x86",
                "qemu-system-common",
                "qemu-system-data",
                "seabios",
            ]
            .iter()
            .map(|name| format!("{name}/{backports}"))
            .collect();
            let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
            apt.unpack_with_needed(&wanted, &root)
                .context("QEMU 9 or newer is needed; install qemu-system-x86")?;
        }
        Ok(Self {
            binary,
            root: Some(root),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
                .map(|directory| root.join(directory).display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            for directory in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(directory));
            }
        }
        command
    }

    /// Boots, runs a shell script as root, and shuts down. `more` is added to the kernel command
    /// line.
    pub fn run(
        &self,
        kernel: &KernelImage,
        more: &str,
        root: &Path,
        script: &str,
        limit: Duration,
    ) -> Result<VmResult> {
        let work = tempfile::tempdir()?;
        // Passed on the command line rather than on a second disk, because disks are numbered in
        // random order.
        let job = base64::engine::general_purpose::STANDARD.encode(script);
        let (console, report) = (work.path().join("console"), work.path().join("report"));
        let accel = if Path::new("/dev/kvm").exists() && std::env::var_os("KEYTRAIL_KVM").is_some()
        {
            "kvm"
        } else {
            "tcg,thread=multi"
        };
        let began = Instant::now();
        let mut child = self
            .command()
            .args(["-accel", accel, "-M", "pc", "-cpu", "max", "-smp", "2", "-m", "1536"])
            .arg("-kernel")
            .arg(&kernel.image)
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=root,snapshot=on", root.display()))
            .args(["-device", "nvme,drive=root,serial=root"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("file:{}", report.display()))
            .args(["-append", &format!("console=ttyS0 root=/dev/nvme0n1 rw init=/init panic=-1 oops=panic quiet loglevel=3 mitigations=off cryptomgr.notests tsc=reliable no_timer_check 8250.nr_uarts=2 {more} -- {job}")])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run QEMU")?;
        loop {
            if child.try_wait()?.is_some() {
                break;
            }
            if began.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let text = |path: &Path| {
            String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\r', "")
        };
        let console = text(&console);
        let status = console
            .lines()
            .find_map(|line| line.trim().strip_prefix(STATUS_MARK)?.trim().parse().ok());
        Ok(VmResult {
            report: text(&report),
            status,
            console,
            took: began.elapsed(),
        })
    }
}

impl VmResult {
    /// Fails with the console output if the script did not succeed.
    pub fn check(&self, what: &str) -> Result<()> {
        match self.status {
            Some(0) => Ok(()),
            status => {
                let mut stderr = std::io::stderr().lock();
                writeln!(stderr, "{}", self.console)?;
                match status {
                    Some(status) => {
                        bail!("{what}: failed with status {status}, see the console above")
                    }
                    None => bail!(
                        "{what}: the machine ended after {:.0?} without a result, see the console above",
                        self.took
                    ),
                }
            }
        }
    }
}
