//! What a request target asks for, as the server will understand it (RFC 9112 §3.2, RFC 3986 §5.2.4,
//! §6.2.2).

/// A path, as far as all servers read it in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Decoded, without "." and "..".
    pub path: String,
    /// Behind the question mark, as it was sent.
    pub query: Option<&'a str>,
    /// Servers could take it for more than one path: it has a separator or a dot that is encoded, an
    /// empty segment, a parameter of a segment, what is no UTF-8, or what is no path at all.
    pub is_ambiguous: bool,
}

/// Reads a request target.
pub fn target(target: &str) -> Target<'_> {
    if target == "*" {
        return Target {
            path: target.to_owned(),
            query: None,
            is_ambiguous: false,
        };
    }
    let without_scheme = target
        .split_once("://")
        .filter(|(scheme, _)| {
            scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
        })
        .map(|(_, rest)| {
            rest.find(['/', '?'])
                .map_or("/", |at| rest.get(at..).unwrap_or("/"))
        });
    let origin = without_scheme.unwrap_or(target);
    let (raw, query) = match origin.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin, None),
    };
    let raw = if raw.is_empty() { "/" } else { raw };
    let mut is_ambiguous = !raw.starts_with('/') || raw.contains(['\\', ';', '#']);
    let mut kept: Vec<String> = Vec::new();
    let segments: Vec<&str> = raw.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (place, segment) in segments.iter().enumerate() {
        let decoded = match decoded(segment) {
            Some(decoded) => decoded,
            None => {
                is_ambiguous = true;
                (*segment).to_owned()
            }
        };
        let is_dots = matches!(decoded.as_str(), "." | "..");
        is_ambiguous |= (is_dots && decoded != *segment)
            || (segment.is_empty() && place < last)
            || decoded.contains(['/', '\\', '%', ';', '?', '#'])
            || decoded.chars().any(char::is_control);
        match decoded.as_str() {
            "." if place == last => kept.push(String::new()),
            "." => {}
            ".." => {
                kept.pop();
                if place == last {
                    kept.push(String::new());
                }
            }
            _ => kept.push(decoded),
        }
    }
    Target {
        path: format!("/{}", kept.join("/")),
        query,
        is_ambiguous,
    }
}

/// A segment without its escapes; None: what it says is no UTF-8, or an escape is none.
fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_the_server_takes_it_for() {
        for (text, path, is_ambiguous) in [
            ("/", "/", false),
            ("/a/b?c=/d", "/a/b", false),
            ("http://host/a", "/a", false),
            ("http://host", "/", false),
            ("http://host?x", "/", false),
            ("/a/../b", "/b", false),
            ("/a/./b/", "/a/b/", false),
            ("/../../a", "/a", false),
            ("/a/..", "/", false),
            ("/%61dmin", "/admin", false),
            ("/a%20b", "/a b", false),
            ("/%2e%2e/admin", "/admin", true),
            ("/a%2fb", "/a/b", true),
            ("/a%252fb", "/a%2fb", true),
            ("/a;x=1/b", "/a;x=1/b", true),
            ("//a", "//a", true),
            ("/a\\b", "/a\\b", true),
            ("/%ff", "/%ff", true),
            ("/%zz", "/%zz", true),
            ("/%00", "/\0", true),
            ("*", "*", false),
            ("host:443", "/", true),
        ] {
            let read = target(text);
            assert_eq!(
                (read.path.as_str(), read.is_ambiguous),
                (path, is_ambiguous),
                "{text}"
            );
        }
        assert_eq!(target("/a?b=c?d").query, Some("b=c?d"));
    }
}
