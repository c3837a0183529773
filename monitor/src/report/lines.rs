//! Writing lines to something that may not be read: a pipe, a file system that is gone. They are
//! written by a thread of their own, from a bounded queue, and whoever makes them never waits.

use crate::done::{self, Done, Waiter};
use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

/// Lines that wait at most; a thousand findings are about a megabyte.
const QUEUE: usize = 4096;
/// What waits at the end is written within this, or not at all.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What becomes of a line for which there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is counted as lost: the agent goes on.
    Lossy,
    /// Whoever makes it waits: a command that exists to print it.
    Complete,
}

enum Message {
    Line(Vec<u8>),
    /// Dropped when everything before is written.
    Reached(Done),
}

/// The end of the queue at which lines are made. Clones share it.
#[derive(Clone, Debug)]
pub struct Lines {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Option<SyncSender<Message>>,
    delivery: Delivery,
    /// For the thread, which ends when everything is written.
    end: Mutex<Waiter>,
    lost: Arc<AtomicU64>,
    next_target: Arc<Mutex<Option<Target>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("delivery", &self.delivery)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// Where lines go.
type Target = Box<dyn Write + Send>;

impl Lines {
    /// Starts the thread.
    pub fn start(name: &str, target: Target, delivery: Delivery) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE);
        let (alive, end) = done::pair();
        let lost = Arc::new(AtomicU64::new(0));
        let next_target = Arc::new(Mutex::new(Some(target)));
        let (lost_in_thread, targets) = (Arc::clone(&lost), Arc::clone(&next_target));
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                write_lines(&messages, &targets, &lost_in_thread);
                drop(alive);
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                queue: Some(queue),
                delivery,
                end: Mutex::new(end),
                lost,
                next_target,
            }),
        })
    }

    /// Hands over a whole line, with its end.
    pub fn write_line(&self, line: Vec<u8>) {
        if !self.send(Message::Line(line)) {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has lines written elsewhere, beginning with the next that is written.
    pub fn set_target(&self, target: Target) {
        let next = self.inner.next_target.lock();
        *next.unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    fn send(&self, message: Message) -> bool {
        let Some(queue) = &self.inner.queue else {
            return false;
        };
        match self.inner.delivery {
            Delivery::Complete => queue.send(message).is_ok(),
            Delivery::Lossy => queue.try_send(message).is_ok(),
        }
    }

    /// Waits until what was handed over is written, where that does not take long.
    pub fn flush(&self) {
        let (reached, waiter) = done::pair();
        if self.send(Message::Reached(reached)) {
            waiter.wait_for(FLUSH_WITHIN);
        }
    }

    /// Lines that could not be written since the start.
    pub fn lost(&self) -> u64 {
        self.inner.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Inner {
    /// Waits for what is still to be written; where it may be lost, not for long.
    fn drop(&mut self) {
        self.queue = None;
        let end = self.end.get_mut().unwrap_or_else(PoisonError::into_inner);
        match self.delivery {
            // What is not written by then is left to the kernel, with the thread.
            Delivery::Lossy => drop(end.wait_for(FLUSH_WITHIN)),
            Delivery::Complete => end.wait(),
        }
    }
}

fn write_lines(
    messages: &Receiver<Message>,
    next_target: &Mutex<Option<Target>>,
    lost: &AtomicU64,
) {
    let mut target: Option<Target> = None;
    for message in messages {
        let next = next_target
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        target = next.or(target);
        match message {
            Message::Reached(reached) => drop(reached),
            Message::Line(line) => {
                // Whole, and at once: it is not to wait in a buffer, nor to be cut by a kill.
                let written = target.as_mut().is_some_and(|target| {
                    target
                        .write_all(&line)
                        .and_then(|()| target.flush())
                        .is_ok()
                });
                if !written {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// For a logger, which writes a line at a time.
impl Write for Lines {
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

    fn into_a_pipe(delivery: Delivery) -> (io::PipeReader, Lines) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::start("lines-test", Box::new(writer), delivery);
        (reader, lines.expect("a thread"))
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_no_time() {
        let (mut reader, lines) = into_a_pipe(Delivery::Lossy);
        let began = Instant::now();
        let line = vec![b'x'; 1023];
        for _ in 0..20_000 {
            lines.write_line([&line[..], b"\n"].concat());
        }
        assert!(began.elapsed() < Duration::from_secs(5), "nobody waited");
        // The queue, and what the pipe holds, are the most that was not lost.
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
