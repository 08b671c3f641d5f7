//! The messages that may have to be sent again, and those that wait to be sent.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// How long an acknowledged message is kept: servers write within a second or so.
const KEEP: Duration = Duration::from_secs(30);

/// How long a connection outlives its agent, counted as [`KEEP`] is: long enough for a server to
/// write a burst of messages, short enough for hosts that connect for each message.
const LINGER: Duration = Duration::from_secs(5);

/// Most bytes of messages that a session keeps. A server's receive buffer takes up to 6 MiB where
/// it is read fast, and is nearly empty then; a queue of ten thousand messages is 1 to 2 MiB.
const WINDOW: usize = 4 << 20;

/// The same while memory is short: what every session may use (a quarter of a megabyte).
const SMALL_WINDOW: usize = 256 << 10;

/// What all sessions together keep before memory counts as short.
const BUDGET: usize = 256 << 20;

/// Bytes that wait to be sent before no more is read from the agent.
const AHEAD: usize = 64 << 10;

/// What all sessions together keep; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Kept(Arc<AtomicUsize>);

/// The messages that are kept, and those that wait to be sent behind them.
///
/// Invariants: `bytes` is the messages of `marks`, one after the other; `sent` and `fresh` are at
/// most `bytes.len()`; the first `acknowledged` marks have a time and the others have none.
#[derive(Debug)]
pub(super) struct Window {
    bytes: VecDeque<u8>,
    marks: VecDeque<Mark>,
    /// What of `bytes` was sent over this connection.
    sent: usize,
    /// What of `bytes` was never sent; it is at the end.
    fresh: usize,
    /// What of `bytes` is in acknowledged messages.
    acknowledged_bytes: usize,
    acknowledged: usize,
    /// Bytes that were sent, each once.
    pub(super) carried: u64,
    kept: Kept,
}

/// A message.
#[derive(Debug)]
struct Mark {
    length: usize,
    /// Since when the server's kernel has it.
    acknowledged: Option<Instant>,
}

impl Window {
    pub(super) fn new(kept: Kept) -> Self {
        Self {
            bytes: VecDeque::new(),
            marks: VecDeque::new(),
            sent: 0,
            fresh: 0,
            acknowledged_bytes: 0,
            acknowledged: 0,
            carried: 0,
            kept,
        }
    }

    /// Bytes that are kept.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() - self.sent < AHEAD
    }

    pub(super) fn push(&mut self, message: &[u8]) {
        self.bytes.extend(message);
        self.fresh += message.len();
        self.marks.push_back(Mark {
            length: message.len(),
            acknowledged: None,
        });
        let all = self.kept.0.fetch_add(message.len(), Ordering::Relaxed) + message.len();
        let most = if all > BUDGET { SMALL_WINDOW } else { WINDOW };
        while self.sent > most
            && self
                .marks
                .front()
                .is_some_and(|mark| mark.length <= self.sent)
        {
            self.pop();
        }
    }

    /// Forgets the oldest message, which was sent.
    pub(super) fn pop(&mut self) {
        let Some(mark) = self.marks.pop_front() else {
            return;
        };
        self.bytes.drain(..mark.length);
        self.sent -= mark.length;
        if mark.acknowledged.is_some() {
            self.acknowledged -= 1;
            self.acknowledged_bytes -= mark.length;
        }
        self.kept.0.fetch_sub(mark.length, Ordering::Relaxed);
        if self.bytes.is_empty() {
            // An idle session holds no memory.
            self.bytes = VecDeque::new();
            self.marks = VecDeque::new();
        }
    }

    /// What is to be sent next; empty where nothing waits.
    pub(super) fn unsent(&self) -> &[u8] {
        let (first, second) = self.bytes.as_slices();
        match first.get(self.sent..) {
            Some(rest @ [_, ..]) => rest,
            _ => second.get(self.sent - first.len()..).unwrap_or_default(),
        }
    }

    pub(super) fn note_sent(&mut self, length: usize) {
        self.sent += length;
        let never = self.bytes.len() - self.sent;
        self.carried += self.fresh.saturating_sub(never) as u64;
        self.fresh = self.fresh.min(never);
    }

    /// The server's kernel has everything that was sent.
    pub(super) fn note_acknowledged(&mut self, now: Instant) {
        while let Some(mark) = self.marks.get_mut(self.acknowledged) {
            if self.acknowledged_bytes + mark.length > self.sent {
                return;
            }
            mark.acknowledged = Some(now);
            self.acknowledged_bytes += mark.length;
            self.acknowledged += 1;
        }
    }

    /// Has the last message been acknowledged for a while?
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.marks.back().is_none_or(|mark| {
            mark.acknowledged
                .is_some_and(|at| now.duration_since(at) >= LINGER)
        })
    }

    /// Forgets what has been acknowledged for long.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some(at) = self.marks.front().and_then(|mark| mark.acknowledged)
            && now.duration_since(at) >= KEEP
        {
            self.pop();
        }
    }

    /// The connection is a new one: everything must be sent.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
        self.acknowledged = 0;
        self.acknowledged_bytes = 0;
        for mark in &mut self.marks {
            mark.acknowledged = None;
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.kept.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends what waits; at most so many bytes.
    fn sent(window: &mut Window, most: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        while !window.unsent().is_empty() && sent.len() < most {
            let part = window.unsent();
            let part = &part[..part.len().min(most - sent.len())];
            sent.extend_from_slice(part);
            let length = part.len();
            window.note_sent(length);
        }
        sent
    }

    #[test]
    fn what_was_sent_is_sent_again_in_its_order() {
        let mut window = Window::new(Kept::default());
        window.push(b"1 a");
        window.push(b"1 b");
        assert_eq!(sent(&mut window, 4), b"1 a1");
        window.rewind();
        window.push(b"1 c");
        assert_eq!(sent(&mut window, 100), b"1 a1 b1 c");
        assert_eq!(window.carried, 9);
    }

    #[test]
    fn acknowledged_messages_are_forgotten_after_a_while() {
        let kept = Kept::default();
        let mut window = Window::new(kept.clone());
        let begin = Instant::now();
        window.push(b"1 a");
        window.push(b"1 b");
        sent(&mut window, 4);
        // The second one is not sent as a whole.
        window.note_acknowledged(begin);
        window.forget(begin + KEEP);
        assert_eq!(window.marks.len(), 1);
        sent(&mut window, 100);
        window.note_acknowledged(begin + KEEP);
        assert!(!window.is_settled(begin + KEEP));
        assert!(window.is_settled(begin + KEEP + LINGER));
        window.forget(begin + KEEP * 2 - Duration::from_secs(1));
        assert!(!window.is_empty());
        // On another connection it is not acknowledged any more.
        window.rewind();
        window.forget(begin + KEEP * 9);
        assert_eq!(sent(&mut window, 100), b"1 b");
        window.note_acknowledged(begin);
        window.forget(begin + KEEP);
        assert!(window.is_empty() && window.is_settled(begin));
        assert_eq!(window.carried, 6);
        assert_eq!(kept.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_waits_is_never_forgotten() {
        let kept = Kept::default();
        let mut window = Window::new(kept.clone());
        let message = vec![b'm'; 1 << 16];
        for _ in 0..200 {
            window.push(&message);
            sent(&mut window, usize::MAX);
            assert!(window.bytes.len() <= WINDOW + message.len());
        }
        window.rewind();
        assert!(!window.has_room());
        let before = window.bytes.len();
        window.push(&message);
        assert_eq!(window.bytes.len(), before + message.len());
        drop(window);
        assert_eq!(kept.0.load(Ordering::Relaxed), 0);
    }
}
