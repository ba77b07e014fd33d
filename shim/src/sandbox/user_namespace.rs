//! User namespaces and their maps: the container's ids 0..65535 are a range of the host's that belongs
//! to nobody else.
//!
//! Layers are id-mapped before there is a child, so a process that lives for a moment lends its user
//! namespace for that; the child's own gets the same map.

use std::fs::File;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;

use super::{Pipe, id_map, kill, write_once};
use crate::step::{At, SetupError, Step};
use crate::sys::clone;

/// A user namespace with the map of `id_base`, to map mounts with.
pub(super) fn make(id_base: u32) -> Result<File, SetupError> {
    let step = Step::UserNamespace;
    let hold = Pipe::new("hold")?;
    let (reader, writer) = (hold.reader, hold.writer);
    let lender = clone::child(CloneFlags::CLONE_NEWUSER, None, || {
        // It closes its copy of the other end, or it would never see ours go.
        if crate::sys::descriptor::keep_only(&[std::os::fd::AsFd::as_fd(&reader)]).is_err() {
            return 1;
        }
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&reader), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
        0
    })
    .at(step, "clone")?;
    let namespace = write_map(lender.pid, id_base)
        .at(step, id_base)
        .and_then(|()| File::open(format!("/proc/{}/ns/user", lender.pid)).at(step, "open"));
    drop(writer);
    kill(&lender);
    namespace
}

/// Maps the ids of the child `pid`, for good.
pub(super) fn map(pid: i32, id_base: u32) -> Result<(), SetupError> {
    write_map(pid, id_base).at(Step::MapIds, id_base)
}

fn write_map(pid: i32, id_base: u32) -> std::io::Result<()> {
    let map = id_map(id_base);
    write_once(&format!("/proc/{pid}/setgroups"), "deny")?;
    write_once(&format!("/proc/{pid}/gid_map"), &map)?;
    write_once(&format!("/proc/{pid}/uid_map"), &map)
}
