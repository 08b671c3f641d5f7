//! Loading, attaching, pinning and enrolling.
//!
//! Two places of attachment. What decides by the calling task (connect and its relatives) is
//! attached once, at the root of the cgroup tree, so that a socket made elsewhere is caught too.
//! What runs for each packet is attached to the enrolled cgroup alone: other packets cost nothing.
//!
//! With [`Pins`], maps and links outlive the process: a daemon that was killed leaves its groups
//! refused (or passed, as the operator chose), and its successor takes over by replacing the
//! programs behind the links. Without, everything ends with the descriptors.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
};
use aya_obj::generated::bpf_attach_type::{self, *};
use mantled_abi::{self as abi, Bypass, Config, Group, GroupCounts};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    Error,
    cgroup::Cgroup,
    events::Events,
    flows::{Flows, Maps},
    link::Link,
    listener::{Listeners, Served},
    map::{Map, PerCpuMap, Prefix},
    names::Names,
    namespaces::Namespaces,
    neighbours,
    object::{load_error, load_program, open_map, open_per_cpu_map, program_fd},
    pins::Pins,
    sys, to_abi,
    watch::Watch,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mantled-ebpf"));

/// The maps that are pinned: all of `ebpf/src/maps.rs` that hold something between two calls of
/// a program, but `EVENTS`, which nobody reads afterwards.
const MAPS: [&str; 22] = [
    "ACCEPTED",
    "GROUP_COUNTS",
    "CONFIG",
    "LISTENERS",
    "GROUPS",
    "SOCKETS",
    "LIVENESS",
    "INBOUND",
    "FLOWS",
    "SESSIONS",
    "UNREACHABLE",
    "BYPASS4",
    "BYPASS6",
    "RESOLVERS",
    "COUNTERS",
    "QUERIES",
    "ANSWERS",
    "NAMES",
    "SURVEY",
    "SEEN",
    "DATAGRAMS",
    "RELAYED",
];

/// A kernel program and where it is attached.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the hook, as bpftool prints it.
    pub name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) attach: bpf_attach_type,
    /// The Linux version that has it.
    pub since: &'static str,
}

/// Attached at the root.
pub(crate) static ROOT_HOOKS: [Hook; 7] = [
    Hook {
        name: "connect4",
        program: "mantled_connect4",
        attach: BPF_CGROUP_INET4_CONNECT,
        since: "4.17",
    },
    Hook {
        name: "connect6",
        program: "mantled_connect6",
        attach: BPF_CGROUP_INET6_CONNECT,
        since: "4.17",
    },
    Hook {
        name: "sendmsg4",
        program: "mantled_sendmsg4",
        attach: BPF_CGROUP_UDP4_SENDMSG,
        since: "4.18",
    },
    Hook {
        name: "sendmsg6",
        program: "mantled_sendmsg6",
        attach: BPF_CGROUP_UDP6_SENDMSG,
        since: "4.18",
    },
    Hook {
        name: "getpeername4",
        program: "mantled_getpeer4",
        attach: BPF_CGROUP_INET4_GETPEERNAME,
        since: "5.8",
    },
    Hook {
        name: "getpeername6",
        program: "mantled_getpeer6",
        attach: BPF_CGROUP_INET6_GETPEERNAME,
        since: "5.8",
    },
    Hook {
        name: "sock_ops",
        program: "mantled_sockops",
        attach: BPF_CGROUP_SOCK_OPS,
        since: "5.15",
    },
];

/// Attached to each enrolled cgroup.
pub(crate) static GROUP_HOOKS: [Hook; 3] = [
    Hook {
        name: "egress",
        program: "mantled_egress",
        attach: BPF_CGROUP_INET_EGRESS,
        since: "4.10",
    },
    Hook {
        name: "ingress",
        program: "mantled_ingress",
        attach: BPF_CGROUP_INET_INGRESS,
        since: "4.10",
    },
    Hook {
        name: "sock_create",
        program: "mantled_create",
        attach: BPF_CGROUP_INET_SOCK_CREATE,
        since: "4.10",
    },
];

/// The kernel programs, loaded.
pub struct Interceptor {
    ebpf: Ebpf,
    pins: Option<Pins>,
    config: Map<u32, Config>,
    served: Served,
    watch: Option<Watch>,
    groups: Map<u64, Group>,
    bypass4: Map<Prefix<4>, Bypass>,
    bypass6: Map<Prefix<16>, Bypass>,
    resolvers: Map<abi::Address, u32>,
    counters: Counters,
    flows: Flows,
    root_links: Vec<Link>,
    group_links: HashMap<u64, Vec<Link>>,
    /// What [`Self::serve`] has told the programs.
    told: Option<Config>,
}

fn told(source: io::Error) -> Error {
    Error::io("telling the kernel programs where mantled listens", source)
}

impl std::fmt::Debug for Interceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interceptor")
            .field("pins", &self.pins)
            .field("groups", &self.group_links.keys())
            .finish_non_exhaustive()
    }
}

impl Interceptor {
    /// Loads programs and maps. Nothing is attached yet.
    ///
    /// # Errors
    /// A missing privilege, kernel feature or bpf file system, each by name.
    pub fn load(pins: Option<Pins>) -> Result<Self, Error> {
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &pins {
            pins.prepare()?;
            for name in MAPS {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|error| load_error("loading the kernel object", &error))?;
        for hook in Self::hooks() {
            let program = ebpf
                .program_mut(hook.program)
                .ok_or_else(|| Error::Load(format!("the object lacks {}", hook.program)))?;
            load_program(program).map_err(|error| {
                load_error(
                    &format!("loading {} (Linux {})", hook.name, hook.since),
                    &error,
                )
            })?;
        }
        let flows = Flows::new(Maps {
            flows: open_map(&ebpf, "FLOWS")?,
            sessions: open_map(&ebpf, "SESSIONS")?,
            unreachable: open_map(&ebpf, "UNREACHABLE")?,
            accepted: open_map(&ebpf, "ACCEPTED")?,
            groups: open_map(&ebpf, "GROUPS")?,
            datagrams: open_map(&ebpf, "DATAGRAMS")?,
            counts: open_per_cpu_map(&ebpf, "GROUP_COUNTS")?,
        });
        Ok(Self {
            config: open_map(&ebpf, "CONFIG")?,
            served: Served::new(open_map(&ebpf, "LISTENERS")?, open_map(&ebpf, "LIVENESS")?),
            watch: None,
            groups: open_map(&ebpf, "GROUPS")?,
            bypass4: open_map(&ebpf, "BYPASS4")?,
            bypass6: open_map(&ebpf, "BYPASS6")?,
            resolvers: open_map(&ebpf, "RESOLVERS")?,
            counters: Counters(Arc::new(open_per_cpu_map(&ebpf, "COUNTERS")?)),
            flows,
            ebpf,
            pins,
            root_links: Vec::new(),
            group_links: HashMap::new(),
            told: None,
        })
    }

    /// Attaches at the root, or takes over what an earlier daemon attached. Until [`serve`] was
    /// called, enrolled groups find no daemon.
    ///
    /// [`serve`]: Self::serve
    ///
    /// # Errors
    /// [`Error::Exclusive`] and the like; what was attached before the failure is dropped again
    /// with self, unless it was pinned by an earlier daemon.
    pub fn attach(&mut self) -> Result<(), Error> {
        let root = Cgroup::root()?;
        for hook in &ROOT_HOOKS {
            let pin = self.pins.as_ref().map(|pins| pins.link(hook.name));
            let link = self.link(hook, &root, pin.as_deref())?;
            self.root_links.push(link);
        }
        Ok(())
    }

    /// Every hook that is needed.
    pub(crate) fn hooks() -> impl Iterator<Item = &'static Hook> {
        ROOT_HOOKS.iter().chain(&GROUP_HOOKS)
    }

    /// Attaches one program and detaches it again.
    pub(crate) fn try_attach(&self, hook: &Hook, cgroup: &Cgroup) -> Result<(), Error> {
        self.link(hook, cgroup, None).map(drop)
    }

    fn link(&self, hook: &Hook, cgroup: &Cgroup, pin: Option<&Path>) -> Result<Link, Error> {
        let program = program_fd(&self.ebpf, hook)?;
        let failed = |source: io::Error| {
            let obstacle = match source.raw_os_error() {
                Some(libc::EPERM) => neighbours::obstacle(hook.name, hook.attach, cgroup),
                _ => None,
            };
            match obstacle {
                Some(obstacle) => Error::Exclusive {
                    cgroup: cgroup.path().to_owned(),
                    obstacle,
                },
                None => Error::io(
                    format!("attaching {} to {}", hook.name, cgroup.path().display()),
                    source,
                ),
            }
        };
        let Some(pin) = pin else {
            return Link::create(program, cgroup.as_fd(), hook.attach).map_err(failed);
        };
        if let Ok(link) = Link::open(pin) {
            if link.is_attached() {
                link.replace(program).map_err(failed)?;
                return Ok(link);
            }
            fs::remove_file(pin).map_err(failed)?;
        }
        let link = Link::create(program, cgroup.as_fd(), hook.attach).map_err(failed)?;
        link.pin(pin).map_err(failed)?;
        Ok(link)
    }

    /// Tells the programs where the daemon listens in its own network namespace. From now on it
    /// counts as alive there, for as long as `listeners` is open.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn serve(&mut self, listeners: &Listeners, debug: bool) -> Result<(), Error> {
        let config = Config {
            debug: debug.into(),
            pad: 0,
        };
        self.served
            .add(listeners)
            .and_then(|()| self.config.insert(&0, &config))
            .map_err(told)?;
        self.told = Some(config);
        Ok(())
    }

    /// Listens in other network namespaces from now on, wherever groups are that are enrolled
    /// after this call. It is up to the caller to look again.
    ///
    /// # Errors
    /// As readlink(2).
    pub fn watch(&mut self, namespaces: Arc<dyn Namespaces>) -> Result<Watch, Error> {
        let watch = Watch::new(namespaces, self.served.clone())?;
        self.watch = Some(watch.clone());
        Ok(watch)
    }

    /// The namespaces, by cookie, in which the daemon listens for a group that was just enrolled,
    /// beside its own.
    pub fn namespaces_of(&self, group: u64) -> Vec<u64> {
        self.watch
            .as_ref()
            .map_or_else(Vec::new, |watch| watch.namespaces_of(group))
    }

    /// Forgets where an earlier daemon has listened and this one does not.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn forget_others(&self) -> Result<(), Error> {
        self.served
            .forget_others()
            .map_err(|source| Error::io("forgetting where an earlier daemon has listened", source))
    }

    /// Puts this process's programs and listeners back in their place, after a successor has begun
    /// to take over and failed. The groups are to be enrolled again.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn take_back(&mut self) -> Result<(), Error> {
        self.root_links.clear();
        self.attach()?;
        if let Some(config) = &self.told {
            self.config.insert(&0, config).map_err(told)?;
        }
        self.served.restore().map_err(told)
    }

    /// Enrols a cgroup, or changes how it is enrolled. The last step is one map update: before
    /// it nothing has changed for the group, and nothing stays of it where that step is not reached.
    ///
    /// # Errors
    /// [`Error::CannotEnroll`], [`Error::Exclusive`].
    pub fn enroll(&mut self, cgroup: &Cgroup, group: Group) -> Result<(), Error> {
        cgroup.check_enrollable()?;
        let enrolled = self.enrolled()?.contains(&cgroup.id());
        self.try_enroll(cgroup, group).inspect_err(|_| {
            // What was enrolled before stays as it was.
            if !enrolled && let Err(error) = self.withdraw(cgroup.id()) {
                tracing::error!(%error, "`mantled detach --all` removes what is left");
            }
        })
    }

    fn try_enroll(&mut self, cgroup: &Cgroup, group: Group) -> Result<(), Error> {
        self.flows.count(cgroup.id()).map_err(|source| {
            Error::io(format!("counting for {}", cgroup.path().display()), source)
        })?;
        let mut links = Vec::new();
        for hook in &GROUP_HOOKS {
            let pin = self
                .pins
                .as_ref()
                .map(|pins| pins.group(cgroup.id(), hook.name));
            links.push(self.link(hook, cgroup, pin.as_deref())?);
        }
        if let Some(watch) = &self.watch {
            let known = self.enrolled()?.contains(&cgroup.id());
            watch.add(cgroup, group, known);
        }
        self.groups.insert(&cgroup.id(), &group).map_err(|source| {
            if let Some(watch) = &self.watch {
                watch.remove(cgroup.id());
            }
            Error::io(format!("enrolling {}", cgroup.path().display()), source)
        })?;
        self.group_links.insert(cgroup.id(), links);
        Ok(())
    }

    /// Ends the enrolment of a cgroup, by id: it may be gone already. Returns what the kernel has
    /// counted of it, which nobody can ask for afterwards.
    ///
    /// # Errors
    /// As bpf(2) and unlink(2).
    pub fn withdraw(&mut self, id: u64) -> Result<GroupCounts, Error> {
        let failed = |source| Error::io(format!("withdrawing cgroup {id}"), source);
        self.groups.remove(&id).map_err(failed)?;
        if let Some(watch) = &self.watch {
            watch.remove(id);
        }
        self.group_links.remove(&id);
        for path in self.pins.iter().flat_map(|pins| {
            GROUP_HOOKS
                .iter()
                .map(move |hook| pins.group(id, hook.name))
        }) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let counts = self.flows.counts(id).map_err(failed)?;
        self.flows.end_count(id).map_err(failed)?;
        Ok(counts)
    }

    /// Ids of the enrolled cgroups, those of an earlier daemon included.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn enrolled(&self) -> Result<Vec<u64>, Error> {
        self.groups
            .keys()
            .map_err(|source| Error::io("listing the enrolled cgroups", source))
    }

    /// The hooks whose programs the kernel does not run for this cgroup, read back from the kernel:
    /// none where the group is whole.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn missing(&self, cgroup: &Cgroup) -> Result<Vec<&'static str>, Error> {
        let failed = |source| {
            Error::io(
                format!("asking what runs for {}", cgroup.path().display()),
                source,
            )
        };
        let none = Vec::new();
        let links = self.group_links.get(&cgroup.id()).unwrap_or(&none);
        let mut missing = Vec::new();
        for (hooks, links) in [(&ROOT_HOOKS[..], &self.root_links), (&GROUP_HOOKS, links)] {
            for (index, hook) in hooks.iter().enumerate() {
                let runs = match links.get(index) {
                    Some(link) => sys::effective_programs(cgroup.as_fd(), hook.attach)
                        .map_err(failed)?
                        .contains(&link.program().map_err(failed)?),
                    None => false,
                };
                if !runs {
                    missing.push(hook.name);
                }
            }
        }
        Ok(missing)
    }

    /// Sets the bypassed prefixes: (network, prefix length, ports; no port means all).
    ///
    /// # Errors
    /// As bpf(2); more prefixes than the map holds.
    pub fn set_bypass(&self, entries: &[(std::net::IpAddr, u8, Vec<u16>)]) -> Result<(), Error> {
        let failed = |source| Error::io("setting the bypassed destinations", source);
        let (mut kept4, mut kept6) = (Vec::new(), Vec::new());
        for (address, length, ports) in entries {
            let mut value = Bypass {
                count: ports.len() as u32,
                ports: [0; abi::BYPASS_PORTS],
            };
            if ports.len() > abi::BYPASS_PORTS {
                return Err(failed(io::Error::from_raw_os_error(libc::E2BIG)));
            }
            for (slot, port) in value.ports.iter_mut().zip(ports) {
                *slot = *port;
            }
            let length = u32::from(*length);
            match address {
                std::net::IpAddr::V4(v4) => {
                    let key = Prefix {
                        length,
                        bytes: v4.octets(),
                    };
                    self.bypass4.insert(&key, &value).map_err(failed)?;
                    kept4.push(key);
                }
                std::net::IpAddr::V6(v6) => {
                    let key = Prefix {
                        length,
                        bytes: v6.octets(),
                    };
                    self.bypass6.insert(&key, &value).map_err(failed)?;
                    kept6.push(key);
                }
            }
        }
        // The old ones go last: what stays listed is listed at every moment.
        self.bypass4.retain(&kept4).map_err(failed)?;
        self.bypass6.retain(&kept6).map_err(failed)
    }

    /// Sets the resolvers that enrolled groups may ask.
    ///
    /// # Errors
    /// As bpf(2); more than the map holds.
    pub fn set_resolvers(&self, resolvers: &[std::net::IpAddr]) -> Result<(), Error> {
        let failed = |source| Error::io("setting the resolvers", source);
        let kept: Vec<_> = resolvers.iter().map(|resolver| to_abi(*resolver)).collect();
        for key in &kept {
            self.resolvers.insert(key, &1).map_err(failed)?;
        }
        self.resolvers.retain(&kept).map_err(failed)
    }

    /// Sets the UDP ports whose datagrams go to the proxy.
    ///
    /// # Errors
    /// As bpf(2); more than the map holds.
    pub fn set_relayed(&self, ports: &[u16]) -> Result<(), Error> {
        let failed = |source| Error::io("setting the relayed ports", source);
        let map: Map<u32, u32> = open_map(&self.ebpf, "RELAYED")?;
        let kept: Vec<u32> = ports.iter().map(|port| u32::from(*port)).collect();
        for port in &kept {
            map.insert(port, &1).map_err(failed)?;
        }
        map.retain(&kept).map_err(failed)
    }

    /// The list of redirected connections.
    pub fn flows(&self) -> Flows {
        self.flows.clone()
    }

    /// The kernel's counters.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// The stream of events, once. Call it in a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Load`] at the second call.
    pub fn events(&mut self) -> Result<Events, Error> {
        let map = self
            .ebpf
            .take_map("EVENTS")
            .ok_or_else(|| Error::Load("the object lacks EVENTS".to_owned()))?;
        let ring: RingBuf<MapData> = map
            .try_into()
            .map_err(|error| Error::Load(format!("EVENTS: {error}")))?;
        Events::new(ring)
    }

    /// What surveyed groups have done, by destination.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn surveyed(&self) -> Result<Vec<(abi::SurveyKey, abi::Surveyed)>, Error> {
        let failed = |source| Error::io("reading what was surveyed", source);
        let map: Map<abi::SurveyKey, abi::Surveyed> = open_map(&self.ebpf, "SURVEY")?;
        let mut found = Vec::new();
        for key in map.keys().map_err(failed)? {
            if let Some(counted) = map.get(&key).map_err(failed)? {
                found.push((key, counted));
            }
        }
        Ok(found)
    }

    /// What enrolled groups ask DNS, once.
    ///
    /// # Errors
    /// [`Error::Load`] at the second call.
    pub fn names(&mut self) -> Result<Names, Error> {
        let kept = open_map(&self.ebpf, "NAMES")?;
        let map = self
            .ebpf
            .take_map("ANSWERS")
            .ok_or_else(|| Error::Load("the object lacks ANSWERS".to_owned()))?;
        let ring: RingBuf<MapData> = map
            .try_into()
            .map_err(|error| Error::Load(format!("ANSWERS: {error}")))?;
        Ok(Names::new(ring, kept))
    }

    /// Sends what the programs log (when `serve` was told `debug`) to the `log` crate. Call it
    /// in a tokio runtime; the returned future runs for ever.
    ///
    /// # Errors
    /// [`Error::Load`].
    pub fn logger(&mut self) -> Result<impl Future<Output = io::Result<()>> + use<>, Error> {
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf)
            .map_err(|error| Error::Load(format!("the kernel programs' log: {error}")))?;
        Ok(async move {
            // SAFETY: the logger owns its ring's descriptor, as in `Events`.
            let mut logger =
                unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
            loop {
                let mut guard = logger.readable_mut().await?;
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        })
    }

    /// Descriptors of every link, for a process that keeps them open for this one.
    pub fn link_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.root_links
            .iter()
            .chain(self.group_links.values().flatten())
            .map(|link| link.as_fd())
            .collect()
    }
}

/// The kernel's counters; cheap to clone.
#[derive(Clone, Debug)]
pub struct Counters(Arc<PerCpuMap<u32, u64>>);

impl Counters {
    /// Every counter's name and its sum over the CPUs. One that the pinned map of an earlier version
    /// has no room for is zero.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn read(&self) -> io::Result<Vec<(&'static str, u64)>> {
        (0_u32..)
            .zip(abi::COUNTER_NAMES)
            .map(|(index, name)| {
                let values = self.0.get(&index)?.unwrap_or_default();
                Ok((*name, values.iter().sum()))
            })
            .collect()
    }
}
