//! Who made a connection.
//!
//! Process, user and cgroup come from the kernel, as they were at connect(). The executable is
//! read from /proc afterwards, by the [`helper`](crate::helper): it is evidence for the record, never
//! the only ground of a permit.

use std::path::Path;

use mantled_record::Process;
use mantled_redirect::{Peer, events};

use crate::helper::{Helper, Seen};

/// What the kernel has told of the process behind a flow.
pub fn of_kernel(peer: &Peer) -> Process {
    Process {
        pid: peer.flow.pid,
        // The kernel's name is the thread's, which a program chooses.
        name: events::text(&peer.flow.comm),
        uid: peer.flow.uid,
        gid: peer.flow.gid,
        ..Process::default()
    }
}

/// Describes the process behind a flow. What cannot be read (the process is gone) is left out.
pub async fn agent(helper: &Helper, peer: &Peer) -> Process {
    let mut agent = of_kernel(peer);
    // The path is read afterwards, so the answer counts only where it names the cgroup that the
    // kernel saw: the process may have moved, or be another one by now.
    match helper.process(peer.flow.pid, peer.flow.cgroup).await {
        Seen::Process { cgroup, executable } => {
            agent.cgroup = Some(cgroup);
            agent.executable = executable;
        }
        Seen::Gone => {}
        Seen::Unavailable { cgroup } => {
            agent.cgroup = cgroup;
            agent.known_by = Some("kernel");
        }
    }
    let file = agent
        .executable
        .as_deref()
        .and_then(|path| Path::new(path).file_name());
    if let Some(file) = file {
        agent.name = file.to_string_lossy().into_owned();
    }
    agent.unit = agent.cgroup.as_deref().and_then(unit);
    agent.container = agent.cgroup.as_deref().and_then(container);
    agent.pod = agent.cgroup.as_deref().and_then(pod);
    agent
}

/// The systemd unit that a cgroup path lies in: its innermost service, or else scope.
fn unit(path: &str) -> Option<String> {
    let parts = || path.rsplit('/');
    parts()
        .find(|part| part.ends_with(".service"))
        .or_else(|| parts().find(|part| part.ends_with(".scope")))
        .map(str::to_owned)
}

/// The container id in a cgroup path: 64 hexadecimal digits, as Docker, containerd, CRI-O and
/// Podman write them, alone or between a runtime's name and ".scope".
fn container(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|part| {
        let id = part.strip_suffix(".scope").unwrap_or(part);
        let id = id.rsplit(['-', ':']).next().unwrap_or(id);
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
    })
}

/// The uid of the Kubernetes pod in a cgroup path, as the kubelet writes it: "pod<uid>" below
/// "kubepods", or with systemd's cgroups "kubepods-burstable-pod<uid>.slice", where the uid's dashes
/// have become underscores. A pod that came from a file has a hash in that place.
fn pod(path: &str) -> Option<String> {
    path.split('/')
        .skip_while(|part| !part.contains("kubepods"))
        .find_map(|part| {
            let name = part.strip_suffix(".slice").unwrap_or(part);
            let uid = match name.strip_prefix("pod") {
                Some(uid) => uid,
                None => name.rsplit_once("-pod")?.1,
            };
            let digits = uid.bytes().filter(|byte| !matches!(byte, b'-' | b'_'));
            let is_uid =
                digits.clone().count() == 32 && digits.clone().all(|byte| byte.is_ascii_hexdigit());
            is_uid.then(|| uid.replace('_', "-"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_containers_are_read_from_paths() {
        let id = "0123456789abcdef".repeat(4);
        for (path, expected_unit, expected_container) in [
            (
                "/system.slice/shipper.service",
                Some("shipper.service"),
                None,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/run-7.scope",
                Some("user@1000.service"),
                None,
            ),
            (
                &format!("/system.slice/docker-{id}.scope"),
                Some(&*format!("docker-{id}.scope")),
                Some(&*id),
            ),
            (&format!("/kubepods/besteffort/pod1/{id}"), None, Some(&*id)),
            (
                &format!("/kubepods.slice/cri-containerd-{id}.scope"),
                Some(&*format!("cri-containerd-{id}.scope")),
                Some(&*id),
            ),
            ("/", None, None),
        ] {
            assert_eq!(unit(path).as_deref(), expected_unit, "{path}");
            assert_eq!(container(path).as_deref(), expected_container, "{path}");
        }
    }

    #[test]
    fn pods_are_read_from_paths() {
        let uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
        let hash = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
        let systemd = uid.replace('-', "_");
        for (path, expected) in [
            (
                format!("/kubepods/besteffort/pod{uid}/{hash}{hash}"),
                Some(uid),
            ),
            (format!("/kubepods/pod{hash}/{hash}{hash}"), Some(hash)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{hash}{hash}.scope"
                ),
                Some(uid),
            ),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd}.slice"
                ),
                Some(uid),
            ),
            (format!("/system.slice/pod{uid}"), None),
            ("/kubepods/podman".to_owned(), None),
            ("/kubepods.slice/kubepods-pod1.slice".to_owned(), None),
        ] {
            assert_eq!(pod(&path).as_deref(), expected, "{path}");
        }
    }
}
