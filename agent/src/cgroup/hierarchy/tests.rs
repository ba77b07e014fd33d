//! Temporary directories stand in for cgroupfs.

use tempfile::TempDir;

use super::*;

/// A host with a v2 tree that has `controllers`, and v1 mounts with the given options.
struct Host {
    dir: TempDir,
    mountinfo: String,
}

impl Host {
    fn new(controllers: &str, v1: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("unified");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("cgroup.controllers"), controllers).unwrap();
        fs::write(tree.join("cgroup.subtree_control"), "").unwrap();
        let mut mountinfo = format!(
            "20 1 0:1 / / rw - ext4 /dev/vda rw\n30 20 0:26 / {} rw,nosuid - cgroup2 cgroup rw\n",
            tree.display()
        );
        for options in v1 {
            let point = dir.path().join(options);
            fs::create_dir(&point).unwrap();
            mountinfo
                .push_str(&format!("31 20 0:27 / {} rw - cgroup cgroup rw,{options}\n", point.display()));
        }
        Self { dir, mountinfo }
    }

    fn find(&self, own: &str) -> Result<Hierarchies, CgroupError> {
        Hierarchies::find(&self.mountinfo, own, "mogok", None)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

#[test]
fn a_unified_host_limits_through_v2() {
    let host = Host::new("cpuset cpu io memory pids\n", &[]);
    let found = host.find("0::/\n").unwrap();
    assert_eq!(found.mode(), CgroupMode::Unified);
    assert_eq!(found.v2(), host.path("unified/mogok"));
    assert_eq!(found.v1().count(), 0);
    assert!(!found.leave_base);
}

#[test]
fn under_systemd_the_root_lies_in_the_delegated_unit() {
    let host = Host::new("cpu memory pids", &[]);
    let beside = host.find("0::/system.slice/mogok-agent.service/supervisor\n").unwrap();
    assert_eq!(beside.v2(), host.path("unified/system.slice/mogok-agent.service/mogok"));
    assert!(!beside.leave_base);
    let inside = host.find("0::/system.slice/mogok-agent.service\n").unwrap();
    assert_eq!(inside.v2(), host.path("unified/system.slice/mogok-agent.service/mogok"));
    assert!(inside.leave_base);
    let other =
        Hierarchies::find(&host.mountinfo, "0::/a.service", "mogok", Some("/b.slice/c.service")).unwrap();
    assert_eq!(other.v2(), host.path("unified/b.slice/c.service/mogok"));
    assert!(!other.leave_base);
}

#[test]
fn a_path_out_of_the_namespace_stays_in_the_tree() {
    let host = Host::new("cpu memory pids", &[]);
    let found = host.find("0::/../../etc\n").unwrap();
    assert_eq!(found.v2(), host.path("unified/etc/mogok"));
}

#[test]
fn a_hybrid_host_limits_through_v1_at_the_roots() {
    let host = Host::new("hugetlb\n", &["cpu,cpuacct", "memory", "pids", "freezer"]);
    let found = host.find("4:memory:/some/where\n0::/x\n").unwrap();
    assert_eq!(found.mode(), CgroupMode::Hybrid);
    assert_eq!(found.v2(), host.path("unified/mogok"));
    assert_eq!(
        found.v1().collect::<Vec<_>>(),
        [host.path("cpu,cpuacct/mogok"), host.path("memory/mogok"), host.path("pids/mogok")]
    );
    found.prepare().unwrap();
    assert!(host.path("memory/mogok").is_dir() && host.path("unified/mogok").is_dir());
    assert_eq!(fs::read_to_string(host.path("unified/cgroup.subtree_control")).unwrap(), "");
    found.prepare().unwrap();
}

#[test]
fn controllers_in_one_v1_hierarchy_are_one_directory() {
    let host = Host::new("", &["cpu,memory,pids"]);
    assert_eq!(host.find("0::/").unwrap().v1().count(), 1);
}

#[test]
fn a_missing_controller_is_named() {
    let host = Host::new("cpu pids", &["cpuset"]);
    let hierarchies = host.find("0::/").unwrap();
    assert_eq!(hierarchies.mode(), CgroupMode::Hybrid);
    let cgroups = super::super::Cgroups { hierarchies, disk: "/".into() };
    let limits = mogok_api::app::Limits::app();
    let error = cgroups.create(&mogok_api::id::InstanceId::new(), &limits).unwrap_err();
    assert!(error.to_string().starts_with("controller memory: "), "{error}");
}

#[test]
fn no_v2_tree_and_bad_names_are_refused() {
    let error = Hierarchies::find("20 1 0:1 / / rw - ext4 /dev/vda rw\n", "", "mogok", None).unwrap_err();
    assert!(matches!(error, CgroupError::NoUnifiedTree));
    for name in ["", "..", "a/b", ".x", "a b"] {
        assert!(matches!(Hierarchies::find("", "", name, None), Err(CgroupError::InvalidRootName(_))));
    }
}
