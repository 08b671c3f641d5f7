//! The XML that XMPP allows (RFC 6120 §11.1): elements, attributes and text, after an XML
//! declaration; no comments, processing instructions, document types or CDATA.

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 32;

/// Something that XMPP does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadXml;

/// One piece of markup, or what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// The XML declaration.
    Declaration,
    /// What stands between two tags.
    Text(&'a [u8]),
    /// A start tag, or a whole element without content.
    Open {
        name: &'a [u8],
        attributes: &'a [u8],
        empty: bool,
    },
    /// An end tag.
    Close(&'a [u8]),
}

/// Reads the token that the bytes begin with, and how many bytes it takes; None while it is not
/// complete.
pub(super) fn token(stream: &[u8]) -> Result<Option<(Token<'_>, usize)>, BadXml> {
    match stream {
        [] | [b'<'] => Ok(None),
        [b'<', b'!', ..] => Err(BadXml),
        [b'<', b'?', rest @ ..] => declaration(rest),
        [b'<', rest @ ..] => tag(rest),
        _ => Ok(stream
            .iter()
            .position(|byte| *byte == b'<')
            .and_then(|end| Some((Token::Text(stream.get(..end)?), end)))),
    }
}

fn declaration(rest: &[u8]) -> Result<Option<(Token<'_>, usize)>, BadXml> {
    if rest.iter().zip(b"xml").any(|(have, want)| have != want) {
        return Err(BadXml);
    }
    let end = rest.windows(2).position(|pair| pair == b"?>");
    Ok(end.map(|end| (Token::Declaration, end + 4)))
}

fn tag(rest: &[u8]) -> Result<Option<(Token<'_>, usize)>, BadXml> {
    let Some(end) = end_of_tag(rest)? else {
        return Ok(None);
    };
    let inner = rest.get(..end).unwrap_or_default();
    let length = end + 2;
    if let Some(name) = inner.strip_prefix(b"/") {
        let name = name.trim_ascii_end();
        return if is_name(name) {
            Ok(Some((Token::Close(name), length)))
        } else {
            Err(BadXml)
        };
    }
    let (inner, empty) = match inner.strip_suffix(b"/") {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let name_ends = inner
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(inner.len());
    let (name, attributes) = inner.split_at_checked(name_ends).ok_or(BadXml)?;
    if !is_name(name) {
        return Err(BadXml);
    }
    let open = Token::Open {
        name,
        attributes,
        empty,
    };
    Ok(Some((open, length)))
}

/// Where the `>` is that ends a tag. Quoted values may hold one, but no `<`.
fn end_of_tag(rest: &[u8]) -> Result<Option<usize>, BadXml> {
    let mut quote = None;
    for (at, byte) in rest.iter().enumerate() {
        match (*byte, quote) {
            (b'<', _) => return Err(BadXml),
            (byte, Some(open)) if byte == open => quote = None,
            (b'\'' | b'"', None) => quote = Some(*byte),
            (b'>', None) => return Ok(Some(at)),
            _ => {}
        }
    }
    Ok(None)
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b":_-.".contains(byte))
}

/// The value of an attribute, as it is written.
pub(super) fn attribute<'a>(
    mut attributes: &'a [u8],
    wanted: &[u8],
) -> Result<Option<&'a [u8]>, BadXml> {
    let mut found = None;
    loop {
        attributes = attributes.trim_ascii_start();
        if attributes.is_empty() {
            return Ok(found);
        }
        let equals = attributes.iter().position(|byte| *byte == b'=');
        let (name, rest) = attributes
            .split_at_checked(equals.ok_or(BadXml)?)
            .ok_or(BadXml)?;
        let name = name.trim_ascii_end();
        let (quote, rest) = rest
            .get(1..)
            .map(<[u8]>::trim_ascii_start)
            .and_then(<[u8]>::split_first)
            .filter(|(quote, _)| matches!(quote, b'\'' | b'"'))
            .ok_or(BadXml)?;
        let end = rest.iter().position(|byte| byte == quote).ok_or(BadXml)?;
        let (value, rest) = rest.split_at_checked(end).ok_or(BadXml)?;
        if !is_name(name) || (name == wanted && found.is_some()) {
            return Err(BadXml);
        }
        if name == wanted {
            found = Some(value);
        }
        attributes = rest.get(1..).unwrap_or_default();
    }
}

/// A whole element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) name: &'a [u8],
    attributes: &'a [u8],
    pub(super) start_tag: &'a [u8],
    /// What stands between its tags.
    pub(super) content: &'a [u8],
    /// Empty where the element is.
    pub(super) end_tag: &'a [u8],
    /// All of it, tags included.
    pub(super) whole: &'a [u8],
}

impl<'a> Element<'a> {
    /// Has it this name, in this default namespace?
    pub(super) fn is(&self, name: &[u8], namespace: &[u8]) -> bool {
        self.name == name && attribute(self.attributes, b"xmlns") == Ok(Some(namespace))
    }

    /// Its child elements, each with the text before it, and the text after the last.
    pub(super) fn children(&self) -> Result<Children<'a>, BadXml> {
        let mut content = self.content;
        let mut children = Vec::new();
        while let Some(start) = content.iter().position(|byte| *byte == b'<') {
            let (text, from) = content.split_at_checked(start).ok_or(BadXml)?;
            let child = element(from)?.ok_or(BadXml)?;
            content = from.get(child.whole.len()..).ok_or(BadXml)?;
            children.push((text, child));
        }
        Ok((children, content))
    }
}

/// See [`Element::children`].
pub(super) type Children<'a> = (Vec<(&'a [u8], Element<'a>)>, &'a [u8]);

/// Reads the element that the bytes begin with; None while it is not complete.
pub(super) fn element(stream: &[u8]) -> Result<Option<Element<'_>>, BadXml> {
    let Some((first, mut at)) = token(stream)? else {
        return Ok(None);
    };
    let Token::Open {
        name,
        attributes,
        empty,
    } = first
    else {
        return Err(BadXml);
    };
    let begins = at;
    let mut ends = at;
    let mut open = if empty { vec![] } else { vec![name] };
    while !open.is_empty() {
        let Some((token, length)) = token(stream.get(at..).unwrap_or_default())? else {
            return Ok(None);
        };
        match token {
            Token::Declaration => return Err(BadXml),
            Token::Open { empty: true, .. } | Token::Text(_) => {}
            Token::Open { .. } if open.len() >= MAX_DEPTH => return Err(BadXml),
            Token::Open { name, .. } => open.push(name),
            Token::Close(name) if open.pop() == Some(name) => ends = at,
            Token::Close(_) => return Err(BadXml),
        }
        at += length;
    }
    Ok(Some(Element {
        name,
        attributes,
        start_tag: stream.get(..begins).unwrap_or_default(),
        content: stream.get(begins..ends).unwrap_or_default(),
        end_tag: stream.get(ends..at).unwrap_or_default(),
        whole: stream.get(..at).unwrap_or_default(),
    }))
}
