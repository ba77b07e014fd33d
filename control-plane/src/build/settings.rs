//! What a build may cost and how many run at once. Each is a setting of the platform.

use clap::Args;

/// See `mogok-control-plane run --help`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct BuildSettings {
    /// Builds that run at once on the whole platform
    #[arg(long = "build-concurrency", env = "MOGOK_BUILD_CONCURRENCY", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub concurrency: u32,
    /// Bytes of an app's source at most
    #[arg(long = "build-source-bytes", env = "MOGOK_BUILD_SOURCE_BYTES", default_value_t = 1_000_000_000)]
    pub source_bytes: u64,
    /// Bytes of a package at most
    #[arg(long = "build-package-bytes", env = "MOGOK_BUILD_PACKAGE_BYTES", default_value_t = 500_000_000)]
    pub package_bytes: u64,
    /// Seconds a build may run
    #[arg(long = "build-seconds", env = "MOGOK_BUILD_SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
}

/// Bytes as people read them: `512 B`, `12.3 KB`, `6.7 MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // In tenths, so that nothing is lost to floating point.
    let (mut tenths, mut unit) = (bytes / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        (tenths, unit) = (tenths / 1000, unit + 1);
    }
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        rest => format!("{}.{rest} {}", tenths / 10, UNITS[unit]),
    }
}

/// A time limit as people read it: `15 min`, `90 s`.
pub(super) fn duration(seconds: u32) -> String {
    if seconds >= 60 && seconds.is_multiple_of(60) {
        format!("{} min", seconds / 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_shown_for_people() {
        for (bytes, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 KB"),
            (12_345, "12.3 KB"),
            (999_999, "999.9 KB"),
            (6_700_000, "6.7 MB"),
            (500_000_000, "500 MB"),
            (1_000_000_000, "1 GB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        assert!(size(u64::MAX).ends_with(" TB"));
        assert_eq!(
            (duration(900), duration(90), duration(5)),
            ("15 min".into(), "90 s".into(), "5 s".into())
        );
    }
}
