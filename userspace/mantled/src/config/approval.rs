//! `[approval]`: who answers for commands that policies hold.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::Uri;

use super::error::quoted;
use super::field::{At, Field, Span, Strings, Table};
use super::limits::duration;
use super::raw::{RawApproval, RawApprovalGroup, RawApprovalLink};
use super::reader::Reader;

/// An agent that waits longer has been forgotten, and so has what it asked.
const TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// Longest name of a group: it stands in one line of a table.
const NAME_MAX: usize = 64;

/// Who answers for commands that policies hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// How long a command waits for its answer.
    pub timeout: Duration,
    /// The groups of approvers; no two have the same name.
    pub groups: Vec<Approvers>,
    /// Where links to answer by lead; `None`: there are none.
    pub link: Option<Link>,
}

impl Default for Approval {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5 * 60),
            groups: Vec::new(),
            link: None,
        }
    }
}

impl Approval {
    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Approvers> {
        self.groups.iter().find(|group| group.name == name)
    }
}

/// A group of approvers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approvers {
    /// As policies name it.
    pub name: String,
    /// Users of this host.
    pub members: Vec<Member>,
    /// Where its questions are posted.
    pub webhook: Option<Webhook>,
    /// Whoever has the link in a posted question may answer it.
    pub link: bool,
}

/// Whom a group of approvers counts among its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// The user of this name.
    User(String),
    /// The user of this number.
    Uid(u32),
    /// The users in this group of the host.
    Group(String),
}

impl Member {
    fn parse(text: &str) -> Option<Self> {
        let name = |name: &str| {
            let sound = !name.is_empty()
                && name
                    .chars()
                    .all(|c| !c.is_control() && !c.is_whitespace() && c != ':');
            sound.then(|| name.to_owned())
        };
        if let Some(number) = text.strip_prefix("uid:") {
            return number.parse().ok().map(Self::Uid);
        }
        match text.strip_prefix("group:") {
            Some(group) => name(group).map(Self::Group),
            None => name(text).map(Self::User),
        }
    }
}

/// Where questions are posted. Who knows the address can post there too, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook(Uri);

impl Webhook {
    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let host = uri.host().filter(|host| !host.is_empty())?;
        let sound = uri.scheme_str() == Some("https")
            && !uri.authority()?.as_str().contains('@')
            && rustls::pki_types::ServerName::try_from(host.trim_matches(['[', ']'])).is_ok();
        sound.then_some(Self(uri))
    }

    /// The address.
    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Webhook(..)")
    }
}

/// Where links to answer by lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// How the page is reached from outside, without a slash at its end.
    pub url: String,
    /// Where the daemon answers, by plain HTTP.
    pub listen: SocketAddr,
}

pub(super) fn resolve(reader: &mut Reader, raw: RawApproval) -> Approval {
    let default = Approval::default();
    let timeout =
        duration(reader, "timeout", raw.timeout, TIMEOUT_MAX).unwrap_or(default.timeout);
    let has_link = raw.link.span().is_some();
    let link = link(reader, raw.link);
    let mut groups: Vec<(Approvers, usize)> = Vec::new();
    for At { value, span } in reader.tables("approval.group", raw.group) {
        let Some((name, group)) = group(reader, value, &span, has_link) else {
            continue;
        };
        let line = reader.line(&name);
        match groups.iter().find(|(other, _)| other.name == group.name) {
            Some((_, other)) => {
                let message = format!("there is a group {} in line {other}", quoted(&group.name));
                reader.error(&name, &message, "remove one of the two, or name it otherwise");
            }
            None => groups.push((group, line)),
        }
    }
    Approval {
        timeout,
        groups: groups.into_iter().map(|(group, _)| group).collect(),
        link,
    }
}

/// A group, and where its name stands.
fn group(
    reader: &mut Reader,
    raw: RawApprovalGroup,
    table: &Span,
    has_link: bool,
) -> Option<(Span, Approvers)> {
    reader.required("name", &raw.name, table, "name = \"dba\"");
    let name = reader.get("name", raw.name);
    let link = reader.get("link", raw.link).filter(|link| link.value);
    let has_webhook = raw.webhook.span().or(raw.webhook_file.span()).is_some();
    let has_members = raw.members.span().is_some();
    let webhook = webhook(reader, raw.webhook, raw.webhook_file);
    let members = members(reader, raw.members);
    if let Some(At { span, .. }) = &link {
        if !has_webhook {
            let hint = "write `webhook = \"https://...\"` too, or remove `link`";
            reader.missing(span, "`link` without a webhook: nobody gets the link", hint);
        } else if !has_link {
            let hint = "write `[approval.link]` with `url` and `listen`, or remove `link`";
            reader.missing(span, "`link` leads nowhere", hint);
        }
    } else if !has_members {
        let hint = "write `members = [\"alice\", \"uid:1001\", \"group:dba\"]`";
        reader.missing(table, "`members` is missing: nobody could answer", hint);
    }
    let At { value, span } = name?;
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.is_empty() || value.len() > NAME_MAX || !value.chars().all(sound) {
        let message = format!("{} is no name of a group", quoted(&value));
        let hint = "write up to 64 letters, digits, `-`, `_` and `.`, such as `name = \"dba\"`";
        reader.error(&span, &message, hint);
        return None;
    }
    let group = Approvers {
        name: value,
        members,
        webhook,
        link: link.is_some(),
    };
    Some((span, group))
}

fn members(reader: &mut Reader, field: Field<Strings>) -> Vec<Member> {
    let mut members = Vec::new();
    let Some(list) = reader.get("members", field) else {
        return members;
    };
    if list.value.is_empty() {
        let hint = "write `members = [\"alice\", \"uid:1001\", \"group:dba\"]`";
        reader.error(&list.span, "`members` is empty: nobody could answer", hint);
    }
    for field in list.value {
        let Some(At { value, span }) = reader.element::<Strings, _>("members", field) else {
            continue;
        };
        match Member::parse(&value) {
            Some(member) => members.push(member),
            None => {
                let message = format!("`members` has {}, which is nobody", quoted(&value));
                let hint = "write \"alice\", \"uid:1001\" or \"group:dba\"";
                reader.error(&span, &message, hint);
            }
        }
    }
    members
}

/// No message shows what was typed: it is a secret.
fn webhook(
    reader: &mut Reader,
    address: Field<String>,
    file: Field<String>,
) -> Option<Webhook> {
    const HINT: &str = "write `webhook = \"https://...\"`, as the chat program gives it";
    if let (Some(_), Some(span)) = (address.span(), file.span()) {
        let message = "`webhook_file` beside `webhook`";
        reader.error(&span, message, "remove one of the two");
        return None;
    }
    match address {
        Field::Wrong(span) => {
            reader.error(&span, "`webhook` must be a string", HINT);
            None
        }
        Field::Given(At { value, span }) => {
            let webhook = Webhook::parse(&value);
            if webhook.is_none() {
                reader.error(&span, "`webhook` is no address of HTTPS", HINT);
            }
            webhook
        }
        Field::Absent => {
            let path = reader.path("webhook_file", file)?;
            let bytes = reader.read("webhook_file", &path)?;
            let text = String::from_utf8(bytes).unwrap_or_default();
            let webhook = Webhook::parse(text.trim());
            if webhook.is_none() {
                let file = path.value.display();
                let message =
                    format!("`webhook_file` names {file}, which holds no address of HTTPS");
                let hint = "it must hold one line that begins with `https://`";
                reader.error(&path.span, &message, hint);
            }
            webhook
        }
    }
}

fn link(reader: &mut Reader, field: Field<Table<RawApprovalLink>>) -> Option<Link> {
    let span = field.span()?;
    let RawApprovalLink { url, listen } = reader.table("approval.link", field).value;
    reader.required("url", &url, &span, "url = \"https://approve.example.com\"");
    reader.required("listen", &listen, &span, "listen = \"127.0.0.1:7443\"");
    let url = reader.get("url", url).and_then(|At { value, span }| {
        let url = outside(&value);
        if url.is_none() {
            let message = format!("`url` is {}, which is no address of HTTPS", quoted(&value));
            let hint = "write `url = \"https://approve.example.com\"`, without `?` and `#`";
            reader.error(&span, &message, hint);
        }
        url
    });
    let listen = reader.get("listen", listen).and_then(|At { value, span }| {
        let address: Option<SocketAddr> = value.parse().ok();
        let address = address.filter(|address| address.port() != 0);
        if address.is_none() {
            let message = format!("{} is no address with a port", quoted(&value));
            let hint = "write `listen = \"127.0.0.1:7443\"`; a reverse proxy makes HTTPS of it";
            reader.error(&span, &message, hint);
        }
        address
    });
    Some(Link {
        url: url?,
        listen: listen?,
    })
}

fn outside(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host().filter(|host| !host.is_empty());
    let sound = uri.scheme_str() == Some("https")
        && host.is_some()
        && uri.query().is_none()
        && !text.contains(['#', '@', '<', '>', '|', '"']);
    sound.then(|| text.trim_end_matches('/').to_owned())
}
