//! In which network namespaces are enrolled groups? There the daemon listens, and nowhere else.
//!
//! A namespace gets listeners before a group that uses it is enrolled, else as soon as one of the
//! group's tasks is seen in it. It loses them when none is seen any more: listeners keep a
//! namespace, and with it the devices of a container that has ended.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mantled_abi::{Group, MODE_ENFORCE, MODE_OBSERVE};
use tokio::sync::Notify;

use crate::{
    Error, Listeners,
    cgroup::Cgroup,
    listener::Served,
    namespaces::{Namespaces, Opened, Used, own_inode},
};

/// How often in a row a namespace must be seen without a task before it is given up. A task that
/// is being forked while its group is listed can be missed once.
const MISSES: u32 = 2;

/// Looks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    namespaces: Arc<dyn Namespaces>,
    served: Served,
    state: Mutex<State>,
    woken: Notify,
}

#[derive(Debug)]
struct State {
    /// Inode of the daemon's own namespace, whose listeners are its own matter.
    home: u64,
    groups: HashMap<u64, Member>,
    /// By inode.
    open: HashMap<u64, Open>,
    /// What has failed and still does is told once.
    told: HashSet<Subject>,
    changes: Vec<Change>,
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// A namespace, by inode.
    Namespace(u64),
    /// A group, by id.
    Group(u64),
}

#[derive(Debug)]
struct Open {
    cookie: u64,
    missed: u32,
    /// The group for which it was opened.
    first: u64,
    /// The groups that were seen in it, and how they were enrolled then.
    groups: HashMap<u64, Group>,
}

#[derive(Clone, Debug)]
struct Member {
    path: PathBuf,
    settings: Group,
    /// Was it enrolled when it was looked at last, by this daemon or an earlier one?
    known: bool,
    /// It is not enrolled any more; what it has in the namespaces that are open may go on.
    withdrawn: bool,
}

/// What has changed since the last look.
#[derive(Debug)]
pub enum Change {
    /// The kernel sends connections of this namespace here.
    Opened {
        /// Its `SO_NETNS_COOKIE`.
        cookie: u64,
        /// Where they arrive.
        listeners: Listeners,
    },
    /// A group that is redirected was not seen in this namespace before, or is enrolled otherwise
    /// than it was.
    Entered {
        /// The namespace.
        cookie: u64,
        /// The group's cgroup.
        cgroup: PathBuf,
        /// How it is enrolled.
        settings: Group,
        /// What its tasks have made there, they have made as an enrolled group.
        known: bool,
    },
    /// No enrolled group uses this namespace any more: whoever keeps it has to let go. The kernel
    /// sends nothing more.
    Ended {
        /// Which.
        cookie: u64,
    },
    /// A namespace, or a group, that could not be looked after.
    Failed(Error),
}

impl Watch {
    /// Of groups that are not enrolled yet.
    ///
    /// # Errors
    /// As readlink(2).
    pub(crate) fn new(namespaces: Arc<dyn Namespaces>, served: Served) -> Result<Self, Error> {
        let home = own_inode()
            .map_err(|source| Error::io("reading this process's network namespace", source))?;
        Ok(Self(Arc::new(Inner {
            namespaces,
            served,
            state: Mutex::new(State {
                home,
                groups: HashMap::new(),
                open: HashMap::new(),
                told: HashSet::new(),
                changes: Vec::new(),
            }),
            woken: Notify::new(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is half done when a call panics is done by the next look.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Access to the namespaces.
    pub fn namespaces(&self) -> Arc<dyn Namespaces> {
        Arc::clone(&self.0.namespaces)
    }

    /// This group is about to be enrolled: listens wherever its tasks are.
    pub(crate) fn add(&self, cgroup: &Cgroup, settings: Group, known: bool) {
        if !matches!(settings.mode, MODE_OBSERVE | MODE_ENFORCE) {
            return self.remove(cgroup.id());
        }
        let member = Member {
            path: cgroup.path().to_owned(),
            settings,
            known,
            withdrawn: false,
        };
        let mut state = self.state();
        let used = self.used(&mut state, cgroup.id(), &member);
        self.open(&mut state, cgroup.id(), &used.unwrap_or_default());
        // The last cgroup of a unit that has started again.
        state
            .groups
            .retain(|_, other| !other.withdrawn || other.path != member.path);
        state.groups.insert(cgroup.id(), member);
        drop(state);
        self.wake();
    }

    /// The namespaces, by cookie, in which the daemon listens for a group that was just added.
    pub fn namespaces_of(&self, group: u64) -> Vec<u64> {
        let mut state = self.state();
        let Some(member) = state.groups.get(&group).cloned() else {
            return Vec::new();
        };
        let used = self.used(&mut state, group, &member).unwrap_or_default();
        used.iter()
            .filter_map(|used| state.open.get(&used.inode))
            .map(|open| open.cookie)
            .collect()
    }

    /// This group is not enrolled any more.
    pub(crate) fn remove(&self, id: u64) {
        if let Some(member) = self.state().groups.get_mut(&id) {
            member.withdrawn = true;
        }
    }

    /// Looks at every group, opens and gives up namespaces (opens none where `only_ends`), and
    /// returns what has changed since the last call. It blocks for as long as it takes to list the
    /// groups' threads.
    pub fn look(&self, only_ends: bool) -> Vec<Change> {
        let mut state = self.state();
        let groups = state.groups.clone();
        // Of what these use, nothing is known.
        let mut unseen: HashSet<u64> = HashSet::new();
        let mut entered: Vec<(u64, u64)> = Vec::new();
        let mut seen: Vec<Used> = Vec::new();
        for (id, member) in &groups {
            let Some(used) = self.used(&mut state, *id, member) else {
                unseen.insert(*id);
                continue;
            };
            if member.withdrawn {
                if !used.iter().any(|used| state.open.contains_key(&used.inode)) {
                    state.groups.remove(id);
                }
            } else {
                entered.extend(used.iter().map(|used| (used.inode, *id)));
                if !only_ends {
                    self.open(&mut state, *id, &used);
                }
            }
            seen.extend(used);
        }
        for (inode, id) in entered {
            if let Some(member) = groups.get(&id) {
                state.enter(inode, id, member);
            }
        }
        for id in groups.keys() {
            if let Some(member) = state.groups.get_mut(id) {
                member.known = true;
            }
        }
        self.give_up(&mut state, &seen, &unseen);
        state.told.retain(|subject| match subject {
            Subject::Namespace(inode) => seen.iter().any(|used| used.inode == *inode),
            Subject::Group(id) => groups.contains_key(id),
        });
        std::mem::take(&mut state.changes)
    }

    /// The namespaces that a group uses, but for the daemon's own; None where that is unknown.
    fn used(&self, state: &mut State, id: u64, member: &Member) -> Option<Vec<Used>> {
        match self.0.namespaces.used(&member.path, id) {
            Ok(mut used) => {
                used.retain(|used| used.inode != state.home);
                Some(used)
            }
            Err(error) => {
                let action = format!(
                    "looking for the network namespaces of {}",
                    member.path.display()
                );
                state.fail(Subject::Group(id), Error::namespaces(action, error));
                None
            }
        }
    }

    fn open(&self, state: &mut State, group: u64, seen: &[Used]) {
        for used in seen {
            if state.open.contains_key(&used.inode) {
                continue;
            }
            match self.listen(*used) {
                Ok(Opened { cookie, listeners }) => {
                    state.told.remove(&Subject::Namespace(used.inode));
                    state.open.insert(
                        used.inode,
                        Open {
                            cookie,
                            missed: 0,
                            first: group,
                            groups: HashMap::new(),
                        },
                    );
                    state.changes.push(Change::Opened { cookie, listeners });
                }
                // The task has gone; another one, if there is one, is found by the next look.
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    let action = format!(
                        "listening in the network namespace of process {} (net:[{}])",
                        used.task, used.inode
                    );
                    let subject = Subject::Namespace(used.inode);
                    state.fail(subject, Error::namespaces(action, error));
                }
            }
        }
    }

    fn listen(&self, used: Used) -> io::Result<Opened> {
        let opened = self.0.namespaces.listen(used)?;
        self.0
            .served
            .add(&opened.listeners)
            .inspect_err(|_| self.0.namespaces.close(opened.cookie))?;
        Ok(opened)
    }

    fn give_up(&self, state: &mut State, seen: &[Used], unseen: &HashSet<u64>) {
        let State { open, changes, .. } = state;
        open.retain(|inode, open| {
            if seen.iter().any(|used| used.inode == *inode) {
                open.missed = 0;
                return true;
            }
            if std::iter::once(&open.first)
                .chain(open.groups.keys())
                .any(|group| unseen.contains(group))
            {
                return true;
            }
            open.missed += 1;
            if open.missed < MISSES {
                return true;
            }
            // First the kernel: who enters the namespace now is told that nobody listens, not that
            // the daemon is down.
            if let Err(source) = self.0.served.remove(open.cookie) {
                let action = "forgetting the listener of a network namespace";
                changes.push(Change::Failed(Error::io(action, source)));
            }
            self.0.namespaces.close(open.cookie);
            changes.push(Change::Ended {
                cookie: open.cookie,
            });
            false
        });
    }

    /// It is time to look.
    pub fn wake(&self) {
        self.0.woken.notify_one();
    }

    /// Waits until it is. A call that nobody waited for counts.
    pub async fn woken(&self) {
        self.0.woken.notified().await;
    }
}

impl State {
    /// A group's task is in this namespace.
    fn enter(&mut self, inode: u64, id: u64, member: &Member) {
        let Some(open) = self.open.get_mut(&inode) else {
            return;
        };
        if open.groups.insert(id, member.settings) != Some(member.settings) {
            self.changes.push(Change::Entered {
                cookie: open.cookie,
                cgroup: member.path.clone(),
                settings: member.settings,
                known: member.known,
            });
        }
    }

    /// Tells it the first time.
    fn fail(&mut self, what: Subject, error: Error) {
        if self.told.insert(what) {
            self.changes.push(Change::Failed(error));
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
