//! System calls that no library wraps: a few bpf(2) commands and socket options.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{
    BPF_F_QUERY_EFFECTIVE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info,
    bpf_prog_info, bpf_prog_type,
};

/// bpf(2); returns a descriptor or 0.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<RawFd> {
    // SAFETY: `attr` is a whole, initialised union of the size that is passed; the pointers that
    // callers put into it outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_int,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

fn empty() -> bpf_attr {
    // SAFETY: the union is plain old data, for which zero is valid, and the kernel demands that
    // unused parts be zero.
    unsafe { std::mem::zeroed() }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this descriptor; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `BPF_LINK_CREATE` of a cgroup program.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
    attr.link_create.attach_type = attach as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned)
}

/// `BPF_LINK_UPDATE`: puts another program behind a link, without a moment in between.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// `BPF_OBJ_PIN`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// `BPF_OBJ_GET`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned)
}

/// The program behind a cgroup link, by its id, and the id of the cgroup that it is attached to: 0
/// once that is gone.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<(u32, u64)> {
    // SAFETY: plain old data.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the caller passes a cgroup link, whose part of the union the kernel has filled.
    Ok((info.prog_id, unsafe {
        info.__bindgen_anon_1.cgroup.cgroup_id
    }))
}

/// `BPF_PROG_QUERY`: ids of the programs that the kernel runs for a cgroup, those of the cgroups
/// above it included.
pub(crate) fn effective_programs(
    cgroup: BorrowedFd<'_>,
    attach: bpf_attach_type,
) -> io::Result<Vec<u32>> {
    // More than the kernel lets one cgroup have (BPF_CGROUP_MAX_PROGS is 64), on several levels.
    let mut ids = vec![0_u32; 1024];
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attr.query.attach_type = attach as u32;
    attr.query.query_flags = BPF_F_QUERY_EFFECTIVE;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel has filled this member.
    ids.truncate(unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize);
    Ok(ids)
}

/// `BPF_PROG_QUERY`: ids of the programs that are attached to this very cgroup, and how
/// (`BPF_F_ALLOW_MULTI` and the like).
pub(crate) fn attached_programs(
    cgroup: BorrowedFd<'_>,
    attach: bpf_attach_type,
) -> io::Result<(Vec<u32>, u32)> {
    // More than the kernel lets one cgroup have (BPF_CGROUP_MAX_PROGS is 64).
    let mut ids = vec![0_u32; 128];
    let mut attr = empty();
    attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attr.query.attach_type = attach as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel has filled these members.
    let (count, flags) = unsafe {
        (
            attr.query.__bindgen_anon_2.prog_cnt,
            attr.query.attach_flags,
        )
    };
    ids.truncate(count as usize);
    Ok((ids, flags))
}

/// Name of a program, by its id. It takes more privileges than the daemon has (CAP_SYS_ADMIN).
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    let mut attr = empty();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let program = owned(bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)?);
    // SAFETY: plain old data.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let bytes = info.name.map(|byte| byte as u8);
    Ok(bytes
        .split(|byte| *byte == 0)
        .next()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .unwrap_or_default())
}

/// Attaches a program that lets everything pass to a cgroup's `sock_create`, in the old way that
/// suffers no other program there or below. It stays until the cgroup is removed. For tests: this
/// is what other software does that [`Error::Exclusive`](crate::Error::Exclusive) tells of.
///
/// # Errors
/// As bpf(2).
pub fn occupy(cgroup: impl AsFd) -> io::Result<()> {
    // r0 = 1; exit
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
    let mut attr = empty();
    // SAFETY: every member of the union is plain old data, and this one is the command's.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK as u32;
    load.expected_attach_type = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE as u32;
    load.insn_cnt = instructions.len() as u32;
    load.insns = instructions.as_ptr() as u64;
    load.license = c"MIT".as_ptr() as u64;
    for (slot, byte) in load.prog_name.iter_mut().zip(b"occupant") {
        *slot = *byte as _;
    }
    let program = owned(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?);
    let mut attr = empty();
    // SAFETY: as above.
    let attach = unsafe { &mut attr.__bindgen_anon_5 };
    attach.__bindgen_anon_1.target_fd = cgroup.as_fd().as_raw_fd() as u32;
    attach.attach_bpf_fd = program.as_raw_fd() as u32;
    attach.attach_type = bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE as u32;
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// Is the clock kept in step by somebody (NTP)?
///
/// # Errors
/// As adjtimex(2).
pub fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: plain old data; no mode says that nothing is set.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes to `state` alone.
    match unsafe { libc::adjtimex(&raw mut state) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

fn socket_option_u64(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut value: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes to `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// `SO_NETNS_COOKIE` (Linux 5.14) of a socket: which network namespace it is in.
///
/// # Errors
/// As getsockopt(2).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    socket_option_u64(socket.as_fd(), SO_NETNS_COOKIE)
}

/// `SO_BINDTOIFINDEX`: lets the socket use only that device.
///
/// # Errors
/// As setsockopt(2).
pub fn bind_to_device(socket: impl AsFd, index: u32) -> io::Result<()> {
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    set_integer(
        socket.as_fd(),
        libc::SOL_SOCKET,
        SO_BINDTOIFINDEX,
        index as libc::c_int,
    )
}

/// `IP_FREEBIND`, `IPV6_FREEBIND`: lets the socket be bound to an address that is not there yet.
///
/// # Errors
/// As setsockopt(2).
pub(crate) fn bind_freely(socket: impl AsFd, v6: bool) -> io::Result<()> {
    // linux/in6.h; libc has no name for it.
    const IPV6_FREEBIND: libc::c_int = 78;
    let (level, option) = if v6 {
        (libc::IPPROTO_IPV6, IPV6_FREEBIND)
    } else {
        (libc::IPPROTO_IP, libc::IP_FREEBIND)
    };
    set_integer(socket.as_fd(), level, option, 1)
}

fn set_integer(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: four bytes at `value`, as the callers' options take.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Bytes of a TCP socket that its peer has not acknowledged (`SIOCOUTQ`), those included that were
/// not sent yet.
///
/// # Errors
/// As ioctl(2).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // `SIOCOUTQ` is the same request under another name.
    // SAFETY: the request writes one int to `bytes`.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(bytes as usize)
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of the kernel programs.
pub fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("the clock exists on every Linux");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn map_command(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: *const u8,
    value_or_next: *mut u8,
) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value_or_next as u64;
    bpf(command, &mut attr).map(drop)
}

/// `BPF_MAP_LOOKUP_ELEM`.
///
/// # Safety
/// `key` and `value` point to as many bytes as the map's keys and values have.
pub(crate) unsafe fn map_lookup(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *mut u8,
) -> io::Result<()> {
    map_command(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key, value)
}

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (of hash maps since Linux 5.14).
///
/// # Safety
/// As [`map_lookup`].
pub(crate) unsafe fn map_lookup_and_delete(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *mut u8,
) -> io::Result<()> {
    map_command(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, value)
}

/// `BPF_MAP_UPDATE_ELEM`: makes or replaces.
///
/// # Safety
/// As [`map_lookup`].
pub(crate) unsafe fn map_update(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *const u8,
) -> io::Result<()> {
    map_command(bpf_cmd::BPF_MAP_UPDATE_ELEM, map, key, value.cast_mut())
}

/// `BPF_MAP_DELETE_ELEM`.
///
/// # Safety
/// As [`map_lookup`].
pub(crate) unsafe fn map_delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    map_command(bpf_cmd::BPF_MAP_DELETE_ELEM, map, key, std::ptr::null_mut())
}

/// `BPF_MAP_GET_NEXT_KEY`; a null key asks for the first.
///
/// # Safety
/// `next` points to as many bytes as the map's keys have, and so does `key` unless it is null.
pub(crate) unsafe fn map_next_key(
    map: BorrowedFd<'_>,
    key: *const u8,
    next: *mut u8,
) -> io::Result<()> {
    map_command(bpf_cmd::BPF_MAP_GET_NEXT_KEY, map, key, next)
}

/// Size of keys and values, as the kernel knows them.
pub(crate) fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // SAFETY: plain old data.
    let mut info: bpf_map_info = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = map.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.key_size, info.value_size))
}

/// `BPF_LINK_DETACH`: ends the attachment whoever holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// How many CPUs the kernel reserves per-CPU values for.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    // "0-3" or "0"; the ids are contiguous on every machine that the kernel's own tools support.
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    text.trim()
        .rsplit(['-', ','])
        .next()
        .and_then(|last| last.parse::<usize>().ok())
        .map(|last| last + 1)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable list of CPUs"))
}

/// Sends copies of descriptors over a Unix socket.
///
/// # Errors
/// As sendmsg(2).
pub fn send_descriptors(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &[io::IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::empty(),
        None,
    )?;
    Ok(())
}

/// Receives what [`send_descriptors`] sends; None when the other end has closed.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_descriptors(socket: impl AsFd) -> io::Result<Option<Vec<OwnedFd>>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut control = nix::cmsg_space!([RawFd; 64]);
    let mut data = [io::IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut data,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            received.extend(descriptors.into_iter().map(owned));
        }
    }
    Ok((message.bytes > 0).then_some(received))
}
