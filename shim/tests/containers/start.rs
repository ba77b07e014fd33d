//! Starts: the program as the spec asks for it, and failures by the name of their step.

use std::fs;
use std::os::unix::fs::symlink;

use mogok_shim::protocol::{Report, StepFailed};
use mogok_shim::spec::{Bind, BindKind, File, file};

use crate::harness::{Case, Container, skip, until};

fn failed(container: &Container) -> &StepFailed {
    match &container.report {
        Report::Failed(failed) => failed,
        Report::Started(_) => panic!("it started"),
    }
}

#[test]
fn a_program_runs_and_its_status_and_output_come_back() {
    if skip() {
        return;
    }
    let outcome = Case::script("echo out; echo err >&2; id -u; pwd; hostname; exit 7").run();
    assert_eq!(outcome.exit.code, Some(7), "{outcome:?}");
    assert_eq!(outcome.exit.signal, None);
    let out = outcome.stream('O');
    assert_eq!(out[..3], ["out", "1000", "/app"]);
    assert!(out[3].starts_with("mogok-shim-test-"));
    assert_eq!(outcome.stream('E'), ["err"]);
}

#[test]
fn the_report_names_shim_and_init_for_good() {
    if skip() {
        return;
    }
    let container = Case::script("exec sleep 1000").start();
    let started = container.started();
    assert_eq!(started.shim_pid, container.shim.id() as i32);
    let init = fs::read_to_string(format!("/proc/{}/stat", started.init_pid)).unwrap();
    let fields: Vec<_> = init.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[1], started.shim_pid.to_string());
    assert_eq!(fields[19], started.init_start_time.to_string());
    let line = fs::read_to_string(format!("/proc/{}/cmdline", started.init_pid)).unwrap();
    assert_eq!(line.trim_end_matches('\0'), "mogok-init", "the shim's would name a path of the host");
    assert_eq!(&container.client().hello().unwrap(), started);
    let on_disk = fs::read(container.dir.path().join(file::STARTED)).unwrap();
    assert_eq!(&serde_json::from_slice::<mogok_shim::protocol::Started>(&on_disk).unwrap(), started);
}

#[test]
fn a_failed_exec_is_named_and_leaves_nothing() {
    if skip() {
        return;
    }
    let container = Case::command(&["/no/such/program"]).start();
    let failed = failed(&container);
    assert_eq!((failed.step.as_str(), failed.errno), ("execute", libc::ENOENT));
    assert_eq!(failed.detail, "/no/such/program");
    until("nothing is left", || container.processes().is_empty());
}

#[test]
fn a_directory_is_no_program() {
    if skip() {
        return;
    }
    let container = Case::command(&["/bin"]).start();
    assert_eq!((failed(&container).step.as_str(), failed(&container).errno), ("execute", libc::EACCES));
}

#[test]
fn a_working_directory_that_is_not_there_or_leads_out_is_refused() {
    if skip() {
        return;
    }
    for (cwd, errno) in [
        ("/nowhere", libc::ENOENT),
        ("/proc/self/cwd", libc::ELOOP),
        ("/proc/1/root", libc::ELOOP),
        ("/bin/sh", libc::ENOTDIR),
    ] {
        let mut case = Case::script("true");
        case.spec.cwd = cwd.into();
        let container = case.start();
        let failed = failed(&container);
        assert_eq!(
            (failed.step.as_str(), failed.errno, failed.detail.as_str()),
            ("working_directory", errno, cwd)
        );
    }
}

#[test]
fn links_of_the_image_at_places_of_the_sandbox_are_refused() {
    if skip() {
        return;
    }
    for (name, step) in [
        ("proc", "mount_points"),
        ("dev", "devices"),
        ("tmp", "temporary"),
        ("sys", "temporary"),
        ("mnt", "binds"),
    ] {
        let mut case = Case::script("true");
        let layer = case.dir.path().join("layer");
        fs::create_dir(&layer).unwrap();
        symlink("/app", layer.join(name)).unwrap();
        case.spec.layers.insert(0, layer);
        let source = case.dir.path().join("source");
        fs::create_dir(&source).unwrap();
        case.spec.binds.push(Bind { source, target: "/mnt/x".into(), kind: BindKind::ReadOnlyDir });
        let container = case.start();
        let failed = failed(&container);
        assert_eq!((failed.step.as_str(), failed.errno), (step, libc::ENOTDIR), "{failed}");
    }
}

#[test]
fn a_file_of_the_image_at_a_place_of_the_sandbox_is_refused() {
    if skip() {
        return;
    }
    let mut case = Case::script("true");
    let layer = case.dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    fs::write(layer.join("proc"), "").unwrap();
    case.spec.layers.insert(0, layer);
    assert_eq!(failed(&case.start()).step, "mount_points");
}

#[test]
fn missing_sources_are_named() {
    if skip() {
        return;
    }
    let mut case = Case::script("true");
    case.spec.layers.push("/no/such/layer".into());
    let container = case.start();
    let failed = failed(&container);
    assert_eq!((failed.step.as_str(), failed.errno), ("open_sources", libc::ENOENT));
    assert_eq!(failed.detail, "/no/such/layer");
}

#[test]
fn a_bad_spec_is_refused_by_field() {
    if skip() {
        return;
    }
    let mut case = Case::script("true");
    case.spec.uid = 0;
    let container = case.start();
    let failed = failed(&container);
    assert_eq!(failed.step, "read_spec");
    assert!(failed.detail.contains("uid: 0"), "{failed}");
}

#[test]
fn one_container_has_one_shim() {
    if skip() {
        return;
    }
    let container = Case::script("exec sleep 1000").start();
    let second = Case::shim(container.dir.path()).output().unwrap();
    let report: Report = serde_json::from_slice(&second.stdout).unwrap();
    let Report::Failed(failed) = report else { panic!("{report:?}") };
    assert_eq!((failed.step.as_str(), failed.errno), ("state_dir", libc::EWOULDBLOCK));
    // The first has not noticed.
    container.client().hello().unwrap();
}

#[test]
fn files_of_the_spec_replace_those_of_the_image() {
    if skip() {
        return;
    }
    let mut case = Case::script("cat /etc/resolv.conf /etc/new/deep; stat -c '%u %a' /etc/resolv.conf");
    let layer = case.dir.path().join("layer");
    fs::create_dir_all(layer.join("etc")).unwrap();
    symlink("/app/elsewhere", layer.join("etc/resolv.conf")).unwrap();
    case.spec.layers.insert(0, layer);
    for (path, content) in [("/etc/resolv.conf", "nameserver ::1\n"), ("/etc/new/deep", "deep\n")] {
        case.spec.files.push(File { path: path.into(), content: content.into() });
    }
    assert_eq!(case.run().lines(), ["nameserver ::1", "deep", "0 644"]);
}

#[test]
fn a_handed_network_namespace_is_used() {
    if skip() {
        return;
    }
    // The thread's own namespace, which nobody else is in.
    let (own, container) = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        (own, Case::script("readlink /proc/self/ns/net; exec sleep 1000").start_in_current_network())
    })
    .join()
    .unwrap();
    container.await_line(own.to_str().unwrap());
}

#[test]
fn a_cgroup_that_was_killed_once_can_be_used_again() {
    if skip() {
        return;
    }
    let case = Case::script("cat /proc/self/cgroup");
    fs::write(case.spec.cgroup.join("cgroup.kill"), "1").unwrap();
    let container = case.start();
    assert_eq!(container.wait().code, Some(0));
    assert!(container.log().iter().any(|(_, line)| line == "0::/"));
}
