//! Who may answer: users of this host, by what the kernel says of them.

use nix::unistd::{Group, Uid, User};

use super::Held;
use crate::config::{Approvers, Member};

/// The users and groups of a host.
pub trait Accounts: std::fmt::Debug + Send + Sync {
    /// The name of a user.
    fn name(&self, uid: u32) -> Option<String>;
    /// Is this user in that group?
    fn is_in(&self, uid: u32, group: &str) -> bool;
}

/// Those of this host, looked up anew each time; it may block.
#[derive(Clone, Copy, Debug)]
pub struct HostAccounts;

impl Accounts for HostAccounts {
    fn name(&self, uid: u32) -> Option<String> {
        let user = User::from_uid(Uid::from_raw(uid)).ok()??;
        Some(user.name)
    }

    fn is_in(&self, uid: u32, group: &str) -> bool {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let group = Group::from_name(group).ok().flatten();
        match (user, group) {
            (Some(user), Some(group)) => group.gid == user.gid || group.mem.contains(&user.name),
            _ => false,
        }
    }
}

/// Who asks at the socket, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user of the process.
    pub uid: u32,
    /// The user who logged in, where one did.
    pub login: Option<u32>,
}

impl Caller {
    /// The person: who logged in and became root is who logged in. Nobody becomes anybody else:
    /// what /proc says of a process can be another's by the time it is read, and must not make one
    /// user of another.
    ///
    /// # Errors
    /// What to do instead.
    pub fn person(self) -> Result<u32, String> {
        match self.login {
            Some(login) if self.uid == 0 => Ok(login),
            Some(login) if login != self.uid => Err(format!(
                "you are logged in as user {login} and ask as user {}; answer as the user you logged in as",
                self.uid
            )),
            _ => Ok(self.uid),
        }
    }
}

/// Who has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approver {
    /// Name of the user; `link:GROUP` for whoever had the link.
    pub name: String,
    /// Number of the user.
    pub uid: Option<u32>,
    /// `cli` or `link`.
    pub way: &'static str,
    /// From where, for a link.
    pub from: Option<String>,
}

/// Is this person one of the group?
pub(super) fn is_member(accounts: &dyn Accounts, group: &Approvers, person: u32) -> bool {
    let name = accounts.name(person);
    group.members.iter().any(|member| match member {
        Member::User(user) => name.as_ref() == Some(user),
        Member::Uid(uid) => *uid == person,
        // Root is in groups of the host by default, and answers only where it is named.
        Member::Group(group) => person != 0 && accounts.is_in(person, group),
    })
}

/// The caller, if it may answer this.
///
/// # Errors
/// Why it may not.
pub(super) fn approver(
    accounts: &dyn Accounts,
    group: &Approvers,
    caller: Caller,
    held: &Held,
) -> Result<Approver, String> {
    let person = caller.person()?;
    let name = named(accounts, person);
    if !is_member(accounts, group, person) {
        return Err(format!(
            "{name} is not in the group {} of approvers",
            group.name
        ));
    }
    if person == held.uid {
        return Err(format!(
            "the command is of a process of {name}, and nobody approves their own; ask another member of {}",
            group.name
        ));
    }
    Ok(Approver {
        name,
        uid: Some(person),
        way: "cli",
        from: None,
    })
}

/// A user's name, or its number where it has none.
pub(super) fn named(accounts: &dyn Accounts, uid: u32) -> String {
    accounts.name(uid).unwrap_or_else(|| format!("uid:{uid}"))
}
