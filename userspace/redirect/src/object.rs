//! The kernel object: its programs and maps by name, and what the loader says when it fails.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::Map as AyaMap,
    programs::{Program, ProgramError},
};

use crate::{
    Error,
    interceptor::Hook,
    map::{Map, PerCpuMap, Plain},
};

pub(crate) fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

pub(crate) fn program_fd<'a>(ebpf: &'a Ebpf, hook: &Hook) -> Result<BorrowedFd<'a>, Error> {
    let fd = match ebpf.program(hook.program) {
        Some(Program::CgroupSockAddr(program)) => program.fd(),
        Some(Program::SockOps(program)) => program.fd(),
        Some(Program::CgroupSkb(program)) => program.fd(),
        Some(Program::CgroupSock(program)) => program.fd(),
        _ => return Err(Error::Load(format!("the object lacks {}", hook.program))),
    };
    fd.map(|fd| fd.as_fd())
        .map_err(|error| Error::Load(format!("{}: {error}", hook.name)))
}

pub(crate) fn open_map<K: Plain, V: Plain>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<Map<K, V>, Error> {
    Map::new(open_fd(ebpf, name)?)
        .map_err(|source| Error::io(format!("opening map {name}"), source))
}

pub(crate) fn open_per_cpu_map<K: Plain, V: Plain>(
    ebpf: &Ebpf,
    name: &'static str,
) -> Result<PerCpuMap<K, V>, Error> {
    PerCpuMap::new(open_fd(ebpf, name)?)
        .map_err(|source| Error::io(format!("opening map {name}"), source))
}

pub(crate) fn open_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, Error> {
    let data = match ebpf.map(name) {
        Some(
            AyaMap::Array(data)
            | AyaMap::HashMap(data)
            | AyaMap::LruHashMap(data)
            | AyaMap::LpmTrie(data)
            | AyaMap::PerCpuArray(data)
            | AyaMap::PerCpuHashMap(data)
            | AyaMap::SkStorage(data),
        ) => data,
        _ => return Err(Error::Load(format!("the object lacks map {name}"))),
    };
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| Error::io(format!("opening map {name}"), source))
}

/// The end of what the verifier says names the instruction that it rejects.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.get(from..).unwrap_or_default().join(" | ")
}

/// Sorts what the loader said: the errno at the bottom of its chain tells a missing privilege
/// from a kernel that is too old.
pub(crate) fn load_error(action: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut text = error.to_string();
    let mut errno = None;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io_error) = current.downcast_ref::<io::Error>() {
            errno = io_error.raw_os_error();
        }
        if current.source().is_some() || errno.is_none() {
            text = current.to_string();
        }
        cause = current.source();
    }
    match errno {
        // The verifier's EACCES comes with what it says; the privilege that is missing does not,
        // unless it is CAP_PERFMON, whose lack makes it stricter.
        Some(libc::EPERM | libc::EACCES)
            if !text.contains("processed") || text.contains("prohibited for !root") =>
        {
            Error::Privilege {
                action: action.to_owned(),
            }
        }
        _ => Error::Kernel {
            action: action.to_owned(),
            reason: last_lines(&text, 12),
        },
    }
}
