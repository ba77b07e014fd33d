//! The command line of a process as `/proc/PID/cmdline` shows it, which anybody in its PID namespace may read.
//!
//! Pid 1 of a container is a copy of the shim, whose command line names a directory of the host. Invariant: what is
//! written over is this process's own argument area, and stays a row of strings that end with a null.

use std::ffi::CStr;
use std::io;
use std::ops::Range;

/// Where the arguments of this program and of its copies are.
#[derive(Debug, Clone)]
pub struct CommandLine(Range<usize>);

impl CommandLine {
    /// Of the running program.
    ///
    /// # Errors
    /// When `/proc/self/stat` cannot be read or is not as proc_pid_stat(5) says.
    pub fn own() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        parse(&stat).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Shows `name` in place of program and arguments, as far as there is room. Allocates nothing.
    pub fn replace(&self, name: &CStr) {
        let mut name = name.to_bytes().iter();
        // The last byte stays the end of a string.
        for address in self.0.start..self.0.end.saturating_sub(1) {
            let byte = name.next().copied().unwrap_or_default();
            // SAFETY: the kernel named the area in which it laid out the arguments of this program (`arg_start` and
            // `arg_end`), on its stack, for good and writable; strings in it that others hold only get shorter.
            // Volatile, since nothing in the program reads it again.
            unsafe { (address as *mut u8).write_volatile(byte) };
        }
    }
}

/// Fields 48 and 49, counted behind the program's name, which may hold anything.
fn parse(stat: &str) -> Option<Range<usize>> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(45);
    let start = fields.next()?.parse().ok()?;
    let end = fields.next()?.trim_end().parse().ok()?;
    (0 < start && start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_found_behind_any_program_name() {
        let fields: Vec<String> = (3..=52).map(|field: u32| field.to_string()).collect();
        assert_eq!(parse(&format!("7 (a) b (c)) {}\n", fields.join(" "))), Some(48..49));
        let mut none = fields.clone();
        (none[45], none[46]) = ("0".to_owned(), "0".to_owned());
        assert_eq!(parse(&format!("7 (x) {}", none.join(" "))), None, "a kernel thread");
        assert_eq!(parse("7 (x) S 1"), None);
    }

    #[test]
    fn the_own_area_holds_the_own_arguments() {
        let own = CommandLine::own().unwrap();
        assert_eq!(own.0.len(), std::fs::read("/proc/self/cmdline").unwrap().len());
    }
}
