//! Writes lines to an output that may block: a pipe, a dead file system. A separate thread writes
//! them from a bounded queue, so producers never wait.

use crate::completion::{self, Completion, CompletionWaiter};
use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

/// Maximum queued lines; a thousand findings are about a megabyte.
const QUEUE_MAX: usize = 4096;
/// How long to wait at the end for queued lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What to do with a line if the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Count it as lost: the agent continues.
    Lossy,
    /// Wait: a command that exists to print it.
    Complete,
}

enum LineMessage {
    Line(Vec<u8>),
    /// Write to another output from now on.
    Reopen(OpenTarget),
    /// Dropped when everything before it is written.
    Reached(Completion),
}

/// The producing end of the queue. Clones share it.
#[derive(Clone, Debug)]
pub struct LineWriter {
    inner: Arc<LineQueue>,
}

struct LineQueue {
    queue: Option<SyncSender<LineMessage>>,
    delivery: Delivery,
    /// Waits for the thread, which ends when everything is written.
    end: Mutex<CompletionWaiter>,
    lost: Arc<AtomicU64>,
}

impl std::fmt::Debug for LineQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("delivery", &self.delivery)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// An output for lines.
type LineTarget = Box<dyn Write + Send>;
/// Opens an output, which may take long.
type OpenTarget = Box<dyn FnOnce() -> Option<LineTarget> + Send>;

impl LineWriter {
    /// Starts the thread.
    pub fn start(name: &str, target: LineTarget, delivery: Delivery) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let (alive, end) = completion::completion();
        let lost = Arc::new(AtomicU64::new(0));
        let lost_in_thread = Arc::clone(&lost);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                write_lines(&messages, target, &lost_in_thread);
                drop(alive);
            })?;
        Ok(Self {
            inner: Arc::new(LineQueue {
                queue: Some(queue),
                delivery,
                end: Mutex::new(end),
                lost,
            }),
        })
    }

    /// Queues a complete line, including its line end.
    pub fn write_line(&self, line: Vec<u8>) {
        if !self.send(LineMessage::Line(line)) {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the thread open another output, starting with the next line; if `open` returns `None`,
    /// the old one is kept.
    pub fn reopen(&self, open: OpenTarget) {
        if !self.send(LineMessage::Reopen(open)) {
            tracing::error!("cannot reopen an output that does not respond");
        }
    }

    fn send(&self, message: LineMessage) -> bool {
        let Some(queue) = &self.inner.queue else {
            return false;
        };
        match self.inner.delivery {
            Delivery::Complete => queue.send(message).is_ok(),
            Delivery::Lossy => queue.try_send(message).is_ok(),
        }
    }

    /// Waits until all queued lines are written, up to a timeout.
    pub fn flush(&self) {
        let (reached, waiter) = completion::completion();
        if self.send(LineMessage::Reached(reached)) {
            waiter.wait_timeout(FLUSH_TIMEOUT);
        }
    }

    /// Number of lines lost since the start.
    pub fn lost(&self) -> u64 {
        self.inner.lost.load(Ordering::Relaxed)
    }
}

impl Drop for LineQueue {
    /// Waits for queued lines to be written; if they may be lost, only up to a timeout.
    fn drop(&mut self) {
        self.queue = None;
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        match self.delivery {
            // What is not written by then is left to the kernel, along with the thread.
            Delivery::Lossy => drop(end.wait_timeout(FLUSH_TIMEOUT)),
            Delivery::Complete => end.wait(),
        }
    }
}

fn write_lines(messages: &Receiver<LineMessage>, mut target: LineTarget, lost: &AtomicU64) {
    for message in messages {
        match message {
            LineMessage::Reached(reached) => drop(reached),
            LineMessage::Reopen(open) => target = open().unwrap_or(target),
            LineMessage::Line(line) => {
                // Whole and immediately: a line must not stay in a buffer, or be truncated by a
                // kill.
                let written = target.write_all(&line).and_then(|()| target.flush());
                if written.is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// For a logger, which writes one line at a time.
impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_line(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read as _, time::Instant};

    fn into_a_pipe(delivery: Delivery) -> (io::PipeReader, LineWriter) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let lines = LineWriter::start("lines-test", Box::new(writer), delivery);
        (reader, lines.expect("a thread"))
    }

    #[test]
    fn a_stopped_reader_loses_lines_and_delays_nothing() {
        let (mut reader, lines) = into_a_pipe(Delivery::Lossy);
        let began = Instant::now();
        let line = vec![b'x'; 1023];
        for _ in 0..20_000 {
            lines.write_line([&line[..], b"\n"].concat());
        }
        assert!(began.elapsed() < Duration::from_secs(5), "nobody waited");
        // At most the contents of the queue and of the pipe were not lost.
        assert!(lines.lost() > 10_000, "{}", lines.lost());
        let before = lines.lost();
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text)
        });
        drop(lines);
        let text = reading.join().expect("joined").expect("read");
        let whole = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        assert!(
            whole.clone().all(|line| line.len() == 1023),
            "lines are whole"
        );
        assert_eq!(whole.count() as u64, 20_000 - before);
    }

    #[test]
    fn a_command_loses_nothing() {
        let (mut reader, lines) = into_a_pipe(Delivery::Complete);
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text.len())
        });
        for _ in 0..10_000 {
            lines.write_line(vec![b'x'; 100]);
        }
        drop(lines);
        assert_eq!(reading.join().expect("joined").expect("read"), 1_000_000);
    }
}
