//! The thread that starts the canary's process and talks to it. It may wait: the directory may not
//! respond, and processes can be stopped.

use super::{mark::CanaryMark, step::CanaryStep};
use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    time::Duration,
};

/// The argument that makes this program a canary.
const COMMAND: &str = "canary";
/// A variable with a credential's name.
const VARIABLE: &str = "BAO_TOKEN";
/// Maximum time for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until a killed process has ended.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CanaryRequest {
    Round,
    /// With a new process.
    StartAndRound,
}

/// What the thread reports.
#[derive(Debug)]
pub(super) enum CanaryEvent {
    /// From now on, there may be records with this mark.
    Mark(CanaryMark),
    /// The steps that took place in a round.
    Done(BTreeSet<CanaryStep>),
}

/// The pipeline's end.
#[derive(Debug)]
pub(super) struct CanaryThread {
    requests: SyncSender<CanaryRequest>,
    events: Receiver<CanaryEvent>,
}

impl CanaryThread {
    pub fn start(directory: &Path, with_variable: bool) -> io::Result<Self> {
        let (requests, requested) = sync_channel(1);
        let (report, events) = channel();
        let state = ThreadState {
            // Its own, because others may be allowed to look at the state directory.
            directory: directory.join("canary"),
            with_variable,
            process: None,
            report,
        };
        std::thread::Builder::new()
            .name("canary".to_owned())
            .spawn(move || state.run(&requested))?;
        Ok(Self { requests, events })
    }

    /// Returns `false` if the thread is still busy with the previous request.
    pub fn request(&self, request: CanaryRequest) -> bool {
        self.requests.try_send(request).is_ok()
    }

    pub fn event(&self) -> Option<CanaryEvent> {
        self.events.try_recv().ok()
    }
}

struct ThreadState {
    directory: PathBuf,
    with_variable: bool,
    process: Option<CanaryProcess>,
    report: Sender<CanaryEvent>,
}

impl ThreadState {
    fn run(mut self, requests: &Receiver<CanaryRequest>) {
        self.make_directory();
        for request in requests {
            let steps = match self.round(request) {
                Ok(steps) => steps,
                Err(error) => {
                    tracing::warn!(%error, "the canary does not respond: the probes are not tested");
                    if let Some(mut process) = self.process.take()
                        && !process.end()
                    {
                        // It waits in the kernel; a second one would as well.
                        self.process = Some(process);
                    }
                    BTreeSet::new()
                }
            };
            // The receiver is gone if the agent stops.
            if self.report.send(CanaryEvent::Done(steps)).is_err() {
                return;
            }
        }
    }

    /// Makes an empty directory that nobody else can look at; without it, opens are not tested.
    fn make_directory(&self) {
        // What a canary that was killed has left; usually there is nothing.
        let _ = fs::remove_dir_all(&self.directory);
        let made = fs::DirBuilder::new().mode(0o700).create(&self.directory);
        if let Err(error) = made {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot create the directory of the canary");
        }
    }

    fn round(&mut self, request: CanaryRequest) -> io::Result<BTreeSet<CanaryStep>> {
        let mut steps = BTreeSet::new();
        let mut process = match self.process.take() {
            Some(process) if request == CanaryRequest::Round && !process.ended => process,
            old => {
                if let Some(mut old) = old
                    && !old.end()
                {
                    self.process = Some(old);
                    return Err(io::Error::other("its process cannot be ended"));
                }
                steps.insert(CanaryStep::Exec);
                if self.with_variable {
                    steps.insert(CanaryStep::Variable);
                }
                self.spawn()?
            }
        };
        let mark = self.announce()?;
        let done = process.round(mark, &self.directory);
        self.process = Some(process);
        steps.extend(done?);
        Ok(steps)
    }

    fn spawn(&self) -> io::Result<CanaryProcess> {
        let mark = self.announce()?;
        let variable = self.with_variable.then(|| mark.secret());
        let mut process = CanaryProcess::start(variable)?;
        process.ready()?;
        Ok(process)
    }

    fn announce(&self) -> io::Result<CanaryMark> {
        let mark = CanaryMark::random().map_err(|error| io::Error::other(error.to_string()))?;
        let _ = self.report.send(CanaryEvent::Mark(mark));
        Ok(mark)
    }
}

/// A running canary.
struct CanaryProcess {
    child: Child,
    socket: UnixStream,
    answers: BufReader<UnixStream>,
    ended: bool,
}

impl CanaryProcess {
    fn start(variable: Option<String>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        ours.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let child = Command::new("/proc/self/exe")
            .arg(COMMAND)
            .env_clear()
            .envs(variable.map(|secret| (VARIABLE, secret)))
            .env("_RJEM_MALLOC_CONF", "background_thread:false,narenas:1")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            answers: BufReader::new(ours.try_clone()?),
            socket: ours,
            ended: false,
        })
    }

    /// Waits until it is ready.
    fn ready(&mut self) -> io::Result<()> {
        match self.line()?.as_str() {
            "ready" => Ok(()),
            _ => Err(io::Error::other("it is of another release")),
        }
    }

    fn round(&mut self, mark: CanaryMark, directory: &Path) -> io::Result<BTreeSet<CanaryStep>> {
        let directory = directory
            .to_str()
            .ok_or_else(|| io::Error::other("the state directory's name is not text"))?;
        writeln!(self.socket, "{mark} {directory}")?;
        let mut done = BTreeSet::new();
        loop {
            let line = self.line()?;
            if line == "end" {
                return Ok(done);
            }
            if let Some(step) = line.strip_prefix("ok ").and_then(CanaryStep::from_name) {
                done.insert(step);
            } else {
                tracing::debug!(answer = line, "a step of the canary failed");
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line)?;
        if read == 0 {
            return Err(io::Error::other("it ended"));
        }
        Ok(line.trim_end().to_owned())
    }

    /// Kills it; returns whether it ended.
    fn end(&mut self) -> bool {
        // It may have ended already.
        let _ = self.child.kill();
        let began = std::time::Instant::now();
        while !self.ended {
            self.ended = !matches!(self.child.try_wait(), Ok(None));
            if !self.ended {
                if began.elapsed() > KILL_TIMEOUT {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        true
    }
}

impl Drop for CanaryProcess {
    fn drop(&mut self) {
        self.end();
    }
}
