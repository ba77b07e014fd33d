//! The program and what it is to find, laid out before the clone so that the child need not allocate.

use std::ffi::{CString, OsString};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

use crate::spec::Spec;
use crate::step::{At, SetupError, Step};
use crate::sys::exec::Image;

#[derive(Debug)]
pub(super) struct Program {
    pub(super) image: Image,
    pub(super) cwd: CString,
    pub(super) hostname: OsString,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl Program {
    pub(super) fn new(spec: &Spec) -> Result<Self, SetupError> {
        let text = |text: &String| CString::new(text.as_str()).map_err(|_| Errno::EINVAL);
        let strings = |list: &[String]| list.iter().map(text).collect::<Result<Vec<_>, _>>();
        let step = Step::ReadSpec;
        Ok(Self {
            image: Image::new(
                strings(&spec.command).at(step, "command")?,
                strings(&spec.env).at(step, "env")?,
            ),
            cwd: text(&spec.cwd).at(step, "cwd")?,
            hostname: OsString::from(&spec.hostname),
            uid: spec.uid.into(),
            gid: spec.gid.into(),
        })
    }
}
