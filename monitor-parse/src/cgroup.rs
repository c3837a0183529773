//! Parses cgroup paths: container, pod, systemd unit.

/// What is known about a cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// The path from which it was derived.
    pub path: String,
    /// The runtime's container id, 64 hex digits.
    pub container: Option<String>,
    pub pod_uid: Option<String>,
    /// The innermost systemd service; sessions do not count.
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
        // `/kubepods/QOS/POD`, `/kubepods.slice/QOS.slice/POD.slice`
        let depth = if self.path.starts_with("/kubepods") {
            3
        } else {
            2
        };
        let ends = self.path.match_indices('/').skip(1).map(|(at, _)| at);
        let end = ends.chain([self.path.len()]).nth(depth - 1);
        end.map_or(&self.path, |end| &self.path[..end])
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

/// Parses a cgroup path of any runtime and cgroup driver.
///
/// `kubepods.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope` (systemd driver),
/// `/kubepods/burstable/podUID/ID` (cgroupfs), `/docker/ID`, `docker-ID.scope`, `libpod-ID.scope`,
/// `crio-ID.scope`, and units below `system.slice` and `user.slice`.
pub fn parse(path: &str) -> Cgroup {
    let mut group = Cgroup {
        path: path.to_owned(),
        ..Cgroup::default()
    };
    // Users choose the names of their own cgroups: no kubelet keeps pods there.
    let mut of_user = false;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        of_user |= part.starts_with("user@") || part.starts_with("user-");
        if let Some(uid) = pod_uid(part).filter(|_| !of_user) {
            group.pod_uid = Some(uid);
            group.unit = None;
        } else if let Some(id) = container_id(part) {
            group.container = Some(id);
            group.unit = None;
        } else if group.container.is_none() && group.pod_uid.is_none() {
            if part.starts_with("session-") && part.ends_with(".scope") {
                group.session = true;
            } else if part.ends_with(".service") && !part.starts_with("user@") {
                group.unit = Some(part.to_owned());
            }
        }
    }
    group
}

/// A container id: the last run of 64 hex digits, alone or as `runtime-ID.scope`.
fn container_id(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    // conmon's own scope is not the container.
    if name.contains("-conmon-") {
        return None;
    }
    // `cri-containerd:NAME:ID` and `runtime-ID`.
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// `podUID`, or `kubepods-besteffort-podUID.slice` with `_` for `-`.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = if let Some(rest) = name.strip_prefix("pod") {
        rest
    } else {
        name.strip_prefix("kubepods")?.rsplit_once("-pod")?.1
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
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/cri-containerd-Y.scope",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice",
            ),
            ("/kubepods/besteffort/podX/Y", "/kubepods/besteffort/podX"),
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
                false,
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
                Some("sync.service"),
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

    proptest! {
        #[test]
        fn any_path_parses(path in "\\PC{0,200}") {
            let _ = parse(&path);
        }
    }
}
