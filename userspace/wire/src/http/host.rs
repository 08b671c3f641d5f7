//! Which host does a request name? (RFC 9112 §3.2)

use crate::Progress;

/// Longest head of a request that is waited for, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;

/// The host of the first request of a stream, in lower case, without port. None: it names none, or
/// more than one.
pub fn host(stream: &[u8]) -> Progress<Option<String>> {
    let lines = stream.get(..MAX_HEAD).unwrap_or(stream);
    let mut found = None;
    let mut rest = lines;
    let mut first = true;
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return if stream.len() >= MAX_HEAD {
                Progress::Done(None)
            } else {
                Progress::NeedMore
            };
        };
        let (line, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        rest = after.get(1..).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Progress::Done(found);
        }
        if std::mem::take(&mut first) {
            continue;
        }
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else {
            return Progress::Done(None);
        };
        if name.eq_ignore_ascii_case(b"host") {
            if found.is_some() {
                return Progress::Done(None);
            }
            match without_port(value.trim_ascii()) {
                Some(host) => found = Some(host),
                None => return Progress::Done(None),
            }
        }
    }
}

fn without_port(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?;
    let host = match value.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0,
        None => value.split(':').next()?,
    };
    (!host.is_empty()).then(|| host.trim_end_matches('.').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read_or_there_is_none() {
        let done = |host: &str| Progress::Done(Some(host.to_owned()));
        for (request, expected) in [
            (
                &b"GET / HTTP/1.1\r\nhOst: DB.example:8080\r\n\r\n"[..],
                done("db.example"),
            ),
            (
                b"GET / HTTP/1.1\r\nA: b\r\nHost:[2001:db8::1]:80\r\n\r\n",
                done("2001:db8::1"),
            ),
            (b"GET / HTTP/1.0\r\n\r\n", Progress::Done(None)),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                Progress::Done(None),
            ),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
                Progress::Done(None),
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n", Progress::NeedMore),
            (b"GET / HT", Progress::NeedMore),
        ] {
            assert_eq!(host(request), expected, "{}", request.escape_ascii());
        }
        let endless = [b"GET / HTTP/1.1\r\nA: ".to_vec(), vec![b'a'; MAX_HEAD]].concat();
        assert_eq!(host(&endless), Progress::Done(None));
    }
}
