//! Parses cgroup paths: container, pod, systemd unit.

/// What is known about a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The path from which it was derived.
    pub path: String,
    /// The runtime's container id: 64 hex digits for most runtimes.
    pub container: Option<String>,
    /// The id of a container inside that container. Who is in a container chooses the names of the
    /// cgroups in it, so it identifies nothing.
    pub nested: Option<String>,
    pub pod_uid: Option<String>,
    /// The systemd unit: the outermost of the system's services, or a unit of a user's own service
    /// manager as `user@UID/NAME`. Sessions do not count.
    pub unit: Option<String>,
    /// A login session.
    pub session: bool,
    /// The cgroup's id, if it was removed before it could be examined: nothing else is known about
    /// it.
    pub gone: Option<u64>,
}

impl Cgroup {
    /// The outermost part of the path, which its processes cannot leave: a pod, a service, a
    /// container, or a user's slice. Empty if the path is not known.
    pub fn outermost(&self) -> &str {
        if self.gone.is_some() {
            return "";
        }
        let ends: Vec<usize> = self
            .path
            .match_indices('/')
            .skip(1)
            .map(|(at, _)| at)
            .collect();
        let part_ends = ends.into_iter().chain([self.path.len()]);
        let mut begin = 1;
        let mut second = None;
        for (index, end) in part_ends.enumerate() {
            let part = self.path.get(begin..end).unwrap_or_default();
            if pod_uid(part).is_some() {
                return &self.path[..end];
            }
            if index == 1 {
                second = Some(end);
            }
            begin = end + 1;
        }
        second.map_or(&self.path, |end| &self.path[..end])
    }

    /// Whether the processes of both are in the same container, pod or unit.
    pub fn is_same_workload(&self, other: &Self) -> bool {
        self.container == other.container
            && self.nested == other.nested
            && self.pod_uid == other.pod_uid
            && self.unit == other.unit
    }

    /// A cgroup that was removed before it could be examined.
    pub fn vanished(id: u64) -> Self {
        Self {
            path: format!("(cgroup {id})"),
            gone: Some(id),
            ..Self::default()
        }
    }
}

/// Who chooses the names of the cgroups below the one that is being looked at.
enum Below {
    /// The system, and the runtimes that it runs.
    System,
    /// A user, by the id in the name of the slice.
    User(String),
    /// A service, or a container with an init system, which may name its own cgroups as it likes.
    Closed,
}

/// The units of runtimes that keep the cgroups of containers below their own.
const RUNTIME_UNITS: [&str; 14] = [
    "docker",
    "containerd",
    "crio",
    "cri-o",
    "podman",
    "kubelet",
    "k3s",
    "rke2",
    "k0s",
    "snap.microk8s",
    "snap.docker",
    "buildkit",
    "garden",
    "nomad",
];

/// Parses a cgroup path of any runtime and cgroup driver.
///
/// `kubepods.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` (systemd driver, also
/// below a kubelet's `cgroupRoot`), `/kubepods/burstable/podUID/ID` (cgroupfs), `/docker/ID`,
/// `docker-ID.scope`, `libpod-ID.scope`, `crio-ID.scope`, `/ecs/TASK/ID`, Nomad's, Garden's and
/// `BuildKit`'s containers, system containers, and units below `system.slice` and `user.slice`.
///
/// Only names that the system or a runtime chose count: neither a user's slice, nor the inside of a
/// service or of a container, makes a process a pod's, a container's or another unit's.
pub fn parse(path: &str) -> Cgroup {
    let mut group = Cgroup {
        path: path.to_owned(),
        ..Cgroup::default()
    };
    let mut below = Below::System;
    let mut parent = "";
    for part in path.split('/').filter(|part| !part.is_empty()) {
        match &below {
            Below::System => {
                below = group.enter(parent, part);
            }
            Below::User(uid) => {
                if part.starts_with("session-") && part.ends_with(".scope") {
                    group.session = true;
                } else if is_unit_of_user(part) {
                    group.unit = Some(format!("user@{uid}/{part}"));
                }
            }
            Below::Closed => {
                if group.container.is_some() && group.nested.is_none() {
                    group.nested = container_id(parent, part);
                }
            }
        }
        parent = part;
    }
    group
}

impl Cgroup {
    /// Takes a part of the path that the system or a runtime named, and decides about what is below.
    fn enter(&mut self, parent: &str, part: &str) -> Below {
        if let Some(uid) = user_id(part) {
            return Below::User(uid.to_owned());
        }
        if let Some(uid) = pod_uid(part) {
            self.pod_uid = Some(uid);
            self.unit = None;
        }
        if let Some(id) = container_id(parent, part) {
            self.container = Some(id);
            self.unit = None;
            return Below::Closed;
        }
        if self.pod_uid.is_some() {
            return Below::System;
        }
        if is_system_container(parent, part) {
            self.unit = Some(part.to_owned());
            return Below::Closed;
        }
        if part.ends_with(".service") {
            self.unit = Some(part.to_owned());
            let runs_containers = RUNTIME_UNITS.iter().any(|name| part.starts_with(name));
            return if runs_containers {
                Below::System
            } else {
                Below::Closed
            };
        }
        Below::System
    }
}

/// The user of a slice or a service manager: `user-UID.slice`, `user@UID.service`.
fn user_id(part: &str) -> Option<&str> {
    let uid = part
        .strip_prefix("user-")
        .and_then(|rest| rest.strip_suffix(".slice"))
        .or_else(|| part.strip_prefix("user@")?.strip_suffix(".service"))?;
    (!uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit())).then_some(uid)
}

/// Whether a user's service manager has a unit of that name that is worth showing: a service, or a
/// container of a runtime that the user runs.
fn is_unit_of_user(part: &str) -> bool {
    let service = part.ends_with(".service") && !part.starts_with("user@");
    service || (part.ends_with(".scope") && container_id("", part).is_some())
}

/// Whether it is a container with an init system of its own: `systemd-nspawn@NAME.service`,
/// `machine-NAME.scope`, `lxc.payload.NAME`, `/lxc/NAME`.
fn is_system_container(parent: &str, part: &str) -> bool {
    part.starts_with("systemd-nspawn@")
        || part.starts_with("lxc.payload.")
        || part.starts_with("lxc.monitor.")
        || parent == "lxc"
        || (part.starts_with("machine-") && part.ends_with(".scope"))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The id of a container: 64 hex digits, alone or as `runtime-ID.scope`, or the form of a runtime
/// with other ids.
fn container_id(parent: &str, part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    // conmon's own scope is not the container.
    if name.contains("-conmon-") {
        return None;
    }
    // `cri-containerd:NAME:ID` and `runtime-ID`.
    let id = name.rsplit(['-', ':']).next()?;
    if id.len() == 64 && is_hex(id) {
        return Some(id.to_owned());
    }
    let other = match parent {
        // Fargate: the task's 32 hex digits, and a number.
        _ if is_hex(parent) && parent.len() == 32 => name
            .split_once('-')
            .is_some_and(|(task, number)| task == parent && is_hex(number)),
        // `ALLOCATION.TASK.scope`, where the allocation is a uuid.
        "share.slice" | "nomad.slice" | "reserve.slice" => name
            .split_once('.')
            .is_some_and(|(allocation, _)| is_uuid(allocation)),
        "garden" => is_uuid(name),
        "buildkit" => name.len() == 25 && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        _ => name
            .rsplit_once("buildah-buildah")
            .is_some_and(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit())),
    };
    other.then(|| name.to_owned())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.split('-').count() == 5 && text.split('-').all(is_hex)
}

/// `podUID`, or `kubepods-besteffort-podUID.slice` with `_` for `-`, whatever the kubelet's own root
/// is called.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.split(':').next()?;
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = if let Some(rest) = name.strip_prefix("pod") {
        rest
    } else {
        let (before, uid) = name.rsplit_once("-pod")?;
        before.contains("kubepods").then_some(uid)?
    };
    let uid = uid.replace('_', "-");
    // A static pod's uid is a hash of 32 digits.
    (uid.len() >= 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-'))
    .then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "1b2c3d4e-0001-4002-8003-1234567890ab";

    #[test]
    fn the_outermost_cgroups_are_what_processes_cannot_leave() {
        for (path, outermost) in [
            ("", ""),
            ("/", "/"),
            ("/init.scope", "/init.scope"),
            ("/system.slice/shop.service", "/system.slice/shop.service"),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service",
                "/user.slice/user-1000.slice",
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b2c3d4e_0001_4002_8003_1234567890ab.slice/cri-containerd-Y.scope",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b2c3d4e_0001_4002_8003_1234567890ab.slice",
            ),
            (
                "/kubepods/besteffort/pod1b2c3d4e-0001-4002-8003-1234567890ab/Y",
                "/kubepods/besteffort/pod1b2c3d4e-0001-4002-8003-1234567890ab",
            ),
            (
                "/kubelet/kubepods/pod1b2c3d4e-0001-4002-8003-1234567890ab/Y",
                "/kubelet/kubepods/pod1b2c3d4e-0001-4002-8003-1234567890ab",
            ),
            ("/docker/Y", "/docker/Y"),
        ] {
            assert_eq!(parse(path).outermost(), outermost, "{path}");
        }
        // Users can make any number of cgroups that are gone at once.
        assert_eq!(Cgroup::vanished(7).outermost(), "");
    }

    #[test]
    fn containers_pods_and_units() {
        let underscored = UID.replace('-', "_");
        for (path, container, pod, unit) in [
            (
                format!("/kubepods/burstable/pod{UID}/{ID}"),
                true,
                true,
                None,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-{ID}.scope"
                ),
                true,
                true,
                None,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{underscored}.slice/crio-{ID}.scope"),
                true,
                true,
                None,
            ),
            (
                format!("/system.slice/docker-{ID}.scope"),
                true,
                false,
                None,
            ),
            (format!("/docker/{ID}"), true, false, None),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                true,
                false,
                None,
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-besteffort-pod{underscored}.slice:cri-containerd:{ID}"
                ),
                true,
                true,
                None,
            ),
            (
                format!("/machine.slice/libpod-conmon-{ID}.scope"),
                false,
                false,
                None,
            ),
            (
                "/system.slice/nginx.service".to_owned(),
                false,
                false,
                Some("nginx.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service".to_owned(),
                false,
                false,
                Some("user@1000/sync.service"),
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope".to_owned(),
                false,
                false,
                None,
            ),
            ("/".to_owned(), false, false, None),
        ] {
            let group = parse(&path);
            assert_eq!(group.container.is_some(), container, "{path}");
            assert_eq!(group.pod_uid.as_deref() == Some(UID), pod, "{path}");
            assert_eq!(group.unit.as_deref(), unit, "{path}");
        }
        assert!(parse("/user.slice/user-1000.slice/session-3.scope").session);
    }

    /// The container, the pod, the unit, and whether it is nested.
    fn parts(path: &str) -> (Option<String>, bool, Option<String>, bool) {
        let group = parse(path);
        (
            group.container,
            group.pod_uid.as_deref() == Some(UID),
            group.unit,
            group.nested.is_some(),
        )
    }

    #[test]
    fn a_kubelet_with_a_root_of_its_own() {
        let underscored = UID.replace('-', "_");
        for path in [
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{underscored}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubelet/kubepods/burstable/pod{UID}/{ID}"),
            format!(
                "/my.slice/my-kubepods.slice/my-kubepods-pod{underscored}.slice/crio-{ID}.scope"
            ),
        ] {
            assert_eq!(
                parts(&path),
                (Some(ID.to_owned()), true, None, false),
                "{path}"
            );
        }
        // A process of a pod in none of its containers.
        let pod = format!("/kubepods.slice/kubepods-pod{underscored}.slice");
        assert_eq!(parts(&pod), (None, true, None, false));
    }

    #[test]
    fn containers_of_other_runtimes() {
        for (path, container) in [
            (
                "/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-2571234567",
                "0123456789abcdef0123456789abcdef-2571234567",
            ),
            (
                "/nomad.slice/share.slice/1b2c3d4e-0001-4002-8003-1234567890ab.web.scope",
                "1b2c3d4e-0001-4002-8003-1234567890ab.web",
            ),
            (
                "/garden/1b2c3d4e-0001-4002-8003-1234567890ab",
                "1b2c3d4e-0001-4002-8003-1234567890ab",
            ),
            (
                "/buildkit/abcdefghijklmnopqrstuvwx1",
                "abcdefghijklmnopqrstuvwx1",
            ),
            (
                "/machine.slice/crun-buildah-buildah2345678.scope",
                "crun-buildah-buildah2345678",
            ),
        ] {
            assert_eq!(
                parts(path),
                (Some(container.to_owned()), false, None, false),
                "{path}"
            );
        }
        let payload = format!("/machine.slice/libpod-payload-{ID}");
        assert_eq!(parts(&payload).0.as_deref(), Some(ID));
    }

    #[test]
    fn users_services_and_containers_do_not_choose_their_identity() {
        let underscored = UID.replace('-', "_");
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice";
        for (path, container, unit) in [
            (
                format!("{user}/payments.service"),
                None,
                Some("user@1000/payments.service"),
            ),
            (
                format!("{user}/docker-{ID}.scope"),
                None,
                Some(&*format!("user@1000/docker-{ID}.scope")),
            ),
            (
                format!("{user}/kubepods-pod{underscored}.slice/cri-containerd-{ID}.scope"),
                None,
                Some(&*format!("user@1000/cri-containerd-{ID}.scope")),
            ),
            (
                "/user.slice/user-0.slice/user@0.service/a.service".to_owned(),
                None,
                Some("user@0/a.service"),
            ),
            // A service to which its cgroup is delegated.
            (
                format!("/system.slice/shop.service/docker-{ID}.scope"),
                None,
                Some("shop.service"),
            ),
            (
                "/system.slice/shop.service/payments.service".to_owned(),
                None,
                Some("shop.service"),
            ),
            (
                format!("/system.slice/shop.service/kubepods/pod{UID}"),
                None,
                Some("shop.service"),
            ),
            // Containers with an init system.
            (
                "/lxc.payload.web/system.slice/nginx.service".to_owned(),
                None,
                Some("lxc.payload.web"),
            ),
            (
                "/lxc/web/system.slice/nginx.service".to_owned(),
                None,
                Some("web"),
            ),
            (
                "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service"
                    .to_owned(),
                None,
                Some("systemd-nspawn@web.service"),
            ),
            (
                "/machine.slice/machine-web.scope/system.slice/nginx.service".to_owned(),
                None,
                Some("machine-web.scope"),
            ),
            (
                format!("/docker/{ID}/init.scope/system.slice/nginx.service"),
                Some(ID),
                None,
            ),
        ] {
            let group = parse(&path);
            assert_eq!(group.container.as_deref(), container, "{path}");
            assert_eq!(group.pod_uid, None, "{path}");
            assert_eq!(group.unit.as_deref(), unit, "{path}");
            assert_eq!(group.nested, None, "{path}");
        }
    }

    #[test]
    fn a_container_in_a_container_belongs_to_the_outer_one() {
        let inner = ID.replace('0', "f");
        let path = format!("/kubepods/burstable/pod{UID}/{ID}/docker/{inner}");
        let group = parse(&path);
        assert_eq!(group.container.as_deref(), Some(ID));
        assert_eq!(group.nested.as_deref(), Some(&*inner));
        assert_eq!(group.pod_uid.as_deref(), Some(UID));
        // A pod's directory inside a container is what its processes made.
        let forged = format!("/docker/{ID}/kubepods/pod{UID}/{inner}");
        assert_eq!(parse(&forged).pod_uid, None);
    }

    proptest! {
        #[test]
        fn any_path_parses(path in "\\PC{0,200}") {
            let _ = parse(&path);
        }
    }
}
