//! What the machine is and whether it can be a node: facts for the control plane, and a check that
//! names every requirement that is missing, all at once, with its remedy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod requirement;

pub use requirement::{Requirement, check};

/// Why a fact could not be found.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("uname")]
    Uname(#[source] io::Error),
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} does not say how much memory there is", .0.display())]
    NoMemoryTotal(PathBuf),
    #[error("count the processors")]
    Processors(#[source] io::Error),
}

/// The machine, as a node tells the control plane of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// Thousandths of a core that this process may use.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Facts {
    pub fn gather() -> Result<Self, HostError> {
        let cores = std::thread::available_parallelism().map_err(HostError::Processors)?;
        let path = Path::new("/proc/meminfo");
        let meminfo =
            fs::read_to_string(path).map_err(|source| HostError::Read { path: path.to_owned(), source })?;
        Ok(Self {
            kernel: kernel_release()?,
            cpu_millis: cores.get() as u64 * 1000,
            memory_bytes: memory_total(&meminfo).ok_or_else(|| HostError::NoMemoryTotal(path.to_owned()))?,
        })
    }
}

fn kernel_release() -> Result<String, HostError> {
    let name = nix::sys::utsname::uname().map_err(|errno| HostError::Uname(errno.into()))?;
    Ok(name.release().to_string_lossy().into_owned())
}

/// `MemTotal` of proc_meminfo(5), in bytes; the file counts in KiB.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_facts() {
        let facts = Facts::gather().unwrap();
        assert!(facts.cpu_millis >= 1000 && facts.memory_bytes > 1 << 20 && !facts.kernel.is_empty());
        assert_eq!(memory_total("MemTotal:       24684712 kB\nMemFree: 1 kB\n"), Some(24_684_712 * 1024));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
    }
}
