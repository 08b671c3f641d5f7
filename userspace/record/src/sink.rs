//! The writer: one thread, so that a slow disk or pipe never stops the proxy's event loop.
//!
//! # Failing
//!
//! Lines wait in memory while they cannot be written; a line that was written in part is
//! continued where it stopped. Until the first of them is out again the sink is
//! [`Health::Failing`]. With [`OnFailure::Refuse`] the proxy then refuses sessions and nothing is
//! ever dropped: what waits is bounded by the sessions that were open. With
//! [`OnFailure::Continue`] at most [`MAX_WAITING`] bytes wait, and what comes on top is dropped,
//! counted and reported.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Bytes that may wait with [`OnFailure::Continue`]: about 10,000 records.
const MAX_WAITING: usize = 8 << 20;

/// How often a failed write is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// A write that takes longer than this is as good as failed: a pipe that nobody reads, a file
/// system that hangs.
const STUCK: Duration = Duration::from_secs(5);

/// What happens to sessions when their records cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// New ones are refused.
    Refuse,
    /// They go on.
    Continue,
}

/// Can records be written?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// They are.
    Working,
    /// The last attempt failed.
    Failing,
}

/// What was written and lost so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Lines written.
    pub written: u64,
    /// Lines dropped.
    pub dropped: u64,
}

/// What has become of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is written.
    Written,
    /// It was dropped for good.
    Dropped,
}

/// A line, and whom to tell when it is written.
struct Entry {
    line: String,
    receipt: Option<u64>,
}

/// Takes lines; cheap to clone. The thread ends when the last clone is gone and everything is
/// written, or cannot be.
#[derive(Clone)]
pub struct Sink {
    entries: mpsc::Sender<Entry>,
    shared: Arc<Shared>,
    on_failure: OnFailure,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink")
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Shared {
    failing: AtomicBool,
    /// When the write began that is under way.
    writing: Mutex<Option<Instant>>,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Sink {
    /// Starts the writer. `settle` is called, on its thread, with the receipt of each line that
    /// is written or dropped. The handle ends after the last clone of the sink.
    ///
    /// # Errors
    /// As starting a thread.
    pub fn start(
        output: impl Write + Send + 'static,
        on_failure: OnFailure,
        settle: impl Fn(u64, Fate) + Send + 'static,
    ) -> io::Result<(Self, thread::JoinHandle<()>)> {
        let (entries, incoming) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            output,
            waiting: Vec::new(),
            receipts: Vec::new(),
            on_failure,
            shared: Arc::clone(&shared),
            settle,
        };
        let thread = thread::Builder::new()
            .name("mantled-records".to_owned())
            .spawn(move || writer.run(&incoming))?;
        Ok((
            Self {
                entries,
                shared,
                on_failure,
            },
            thread,
        ))
    }

    /// Hands a line over; it never blocks. `receipt` is given to `settle` when it is written.
    pub fn submit(&self, line: String, receipt: Option<u64>) {
        // The thread ends after its senders, so somebody is there to receive.
        let _ = self.entries.send(Entry { line, receipt });
    }

    /// Can records be written?
    pub fn health(&self) -> Health {
        if self.shared.failing.load(Ordering::Relaxed) || self.shared.is_stuck() {
            Health::Failing
        } else {
            Health::Working
        }
    }

    /// Must new sessions be refused now?
    pub fn refuses(&self) -> bool {
        self.on_failure == OnFailure::Refuse && self.health() == Health::Failing
    }

    /// What was written and lost so far.
    pub fn totals(&self) -> Totals {
        Totals {
            written: self.shared.written.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn writing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stuck(&self) -> bool {
        self.writing().is_some_and(|since| since.elapsed() > STUCK)
    }
}

struct Writer<W, S> {
    output: W,
    /// What has not been written, the first line perhaps in part.
    waiting: Vec<u8>,
    /// For each waiting line its length and receipt.
    receipts: Vec<(usize, Option<u64>)>,
    on_failure: OnFailure,
    shared: Arc<Shared>,
    settle: S,
}

impl<W: Write, S: Fn(u64, Fate)> Writer<W, S> {
    fn run(mut self, incoming: &mpsc::Receiver<Entry>) {
        loop {
            let next = if self.waiting.is_empty() {
                incoming
                    .recv()
                    .map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                incoming.recv_timeout(RETRY)
            };
            match next {
                Ok(entry) => {
                    self.accept(entry);
                    // Whatever else has come meanwhile is written with it.
                    while let Ok(entry) = incoming.try_recv() {
                        self.accept(entry);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let _ = self.flush();
                    return;
                }
            }
            let failing = self.flush().is_err();
            self.shared.failing.store(failing, Ordering::Relaxed);
        }
    }

    fn accept(&mut self, entry: Entry) {
        if self.on_failure == OnFailure::Continue
            && self.waiting.len() + entry.line.len() > MAX_WAITING
        {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            if let Some(receipt) = entry.receipt {
                (self.settle)(receipt, Fate::Dropped);
            }
            return;
        }
        self.waiting.extend_from_slice(entry.line.as_bytes());
        self.receipts.push((entry.line.len(), entry.receipt));
    }

    /// Writes what waits, as far as it goes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            *self.shared.writing() = Some(Instant::now());
            let result = self.output.write(&self.waiting);
            *self.shared.writing() = None;
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.settle_written(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.flush()
    }

    fn settle_written(&mut self, mut written: usize) {
        self.waiting.drain(..written);
        let mut lines = 0;
        for (length, receipt) in &mut self.receipts {
            if *length > written {
                *length -= written;
                break;
            }
            written -= *length;
            lines += 1;
            self.shared.written.fetch_add(1, Ordering::Relaxed);
            if let Some(receipt) = *receipt {
                (self.settle)(receipt, Fate::Written);
            }
        }
        self.receipts.drain(..lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for `room` bytes; more is made later.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let fits = bytes.len().min(disk.1 - disk.0.len());
            if fits == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn wait_until(what: &str, done: impl Fn() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not within five seconds: {what}");
    }

    #[test]
    fn a_full_disk_refuses_sessions_and_loses_no_line() {
        let disk = Disk(Arc::new(Mutex::new((Vec::new(), 10))));
        let settled = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&settled);
        let (sink, thread) = Sink::start(disk.clone(), OnFailure::Refuse, move |receipt, _| {
            seen.lock().unwrap().push(receipt)
        })
        .unwrap();
        sink.submit("first\n".into(), Some(1));
        sink.submit("second\n".into(), Some(2));
        wait_until("failure is seen", || sink.refuses());
        assert_eq!(
            *settled.lock().unwrap(),
            [1],
            "the second line is not whole"
        );
        disk.0.lock().unwrap().1 = 1000;
        wait_until("recovery is seen", || !sink.refuses());
        sink.submit("third\n".into(), Some(3));
        drop(sink);
        thread.join().unwrap();
        assert_eq!(disk.0.lock().unwrap().0, b"first\nsecond\nthird\n");
        assert_eq!(*settled.lock().unwrap(), [1, 2, 3]);
    }

    #[test]
    fn continue_drops_what_does_not_fit_in_memory_and_counts_it() {
        let disk = Disk(Arc::new(Mutex::new((Vec::new(), 0))));
        let (sink, thread) = Sink::start(disk, OnFailure::Continue, |_, _| {}).unwrap();
        let line = "x".repeat(MAX_WAITING / 4);
        for _ in 0..6 {
            sink.submit(line.clone(), None);
        }
        wait_until("two lines are dropped", || sink.totals().dropped == 2);
        assert!(!sink.refuses());
        drop(sink);
        thread.join().unwrap();
    }
}
