//! Logs to systemd's journal, by its native protocol.
//!
//! An event's fields are fields of the entry, so that `journalctl SESSION_ID=...` finds it, and they
//! are in its message as well: that is all that `journalctl -u mantled` shows, and it has to tell why.
//!
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>

use std::{
    fmt::{self, Write as _},
    io,
    os::unix::net::UnixDatagram,
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest message of an entry that is too long for one datagram.
const SHORTENED: usize = 16 << 10;

/// Sends events to the journal.
#[derive(Debug)]
pub struct Journal(UnixDatagram);

impl Journal {
    /// The journal of this host.
    ///
    /// # Errors
    /// There is none.
    pub fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // The journal ignores an empty entry.
        socket.send_to(&[], SOCKET)?;
        Ok(Self(socket))
    }

    fn send(&self, entry: &Entry) -> io::Result<usize> {
        // Not connected: a journal that was started again has another socket of that name.
        self.0.send_to(&entry.to_bytes(), SOCKET)
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::new(*event.metadata().level());
        event.record(&mut entry);
        let sent = self.send(&entry);
        if sent.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EMSGSIZE)) {
            // Where this fails as well there is nobody left to tell.
            let _ = self.send(&entry.shortened());
        }
    }
}

/// An entry on its way.
#[derive(Debug)]
struct Entry {
    priority: u8,
    message: String,
    /// The fields, as they follow the message: " name=value".
    written: String,
    fields: Vec<(String, String)>,
}

impl Entry {
    fn new(level: Level) -> Self {
        Self {
            // syslog(3)
            priority: match level {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                _ => 7,
            },
            message: String::new(),
            written: String::new(),
            fields: Vec::new(),
        }
    }

    /// Without fields, and with the beginning of its message.
    fn shortened(&self) -> Self {
        let whole = format!("{}{}", self.message, self.written);
        let end = whole.floor_char_boundary(SHORTENED);
        Self {
            priority: self.priority,
            message: whole.get(..end).unwrap_or_default().to_owned(),
            written: " ...".to_owned(),
            fields: Vec::new(),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        let mut put = |name: &str, value: &str| {
            bytes.extend_from_slice(name.as_bytes());
            // With its length, so that the value may hold line ends.
            bytes.push(b'\n');
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(b'\n');
        };
        put("PRIORITY", &self.priority.to_string());
        put("SYSLOG_IDENTIFIER", "mantled");
        put("MESSAGE", &format!("{}{}", self.message, self.written));
        for (name, value) in &self.fields {
            put(name, value);
        }
        bytes
    }

    fn put(&mut self, field: &Field, value: String, written: fmt::Arguments<'_>) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let _ = write!(self.written, " {}={written}", field.name());
        self.fields.push((name(field.name()), value));
    }
}

/// As the journal allows it: capitals, digits and underscores, no underscore first.
fn name(field: &str) -> String {
    let name: String = field
        .chars()
        .map(|letter| match letter.to_ascii_uppercase() {
            letter if letter.is_ascii_alphanumeric() => letter,
            _ => '_',
        })
        .collect();
    name.trim_start_matches('_').to_owned()
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned(), format_args!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.put(field, value.clone(), format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_fields_and_a_message_that_tells_them() {
        let entry = Entry {
            message: "refused".to_owned(),
            written: " session.id=\"1\"".to_owned(),
            fields: vec![(name("session.id"), "a\nMESSAGE=forged".to_owned())],
            ..Entry::new(Level::WARN)
        };
        let bytes = entry.to_bytes();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (name, after) = rest.split_at(end);
            let (length, after) = after[1..].split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            found.push((
                String::from_utf8_lossy(name).into_owned(),
                String::from_utf8_lossy(&after[..length]).into_owned(),
            ));
            rest = &after[length + 1..];
        }
        let expected = [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "mantled"),
            ("MESSAGE", "refused session.id=\"1\""),
            ("SESSION_ID", "a\nMESSAGE=forged"),
        ];
        assert_eq!(found.len(), expected.len());
        for (found, (name, value)) in found.iter().zip(expected) {
            assert_eq!((found.0.as_str(), found.1.as_str()), (name, value));
        }
        assert_eq!(name("_process.pid"), "PROCESS_PID");
        let long = Entry {
            message: "ä".repeat(SHORTENED),
            ..entry
        };
        assert!(long.shortened().to_bytes().len() < SHORTENED + 200);
    }
}
