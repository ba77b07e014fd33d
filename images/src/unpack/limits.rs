//! What an archive may contain and cost.

/// What kind of tree an archive holds, and so what its entries may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// A root file system of ours: numeric owners 0..65535 are kept.
    Image,
    /// The `/app` of a tenant: everything lies below `app/` and belongs to 1000:1000.
    Package,
}

impl Profile {
    /// Where a store keeps trees of this profile.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Image => "trees",
            Self::Package => "packages",
        }
    }
}

/// Caps on one archive. All of them are inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackLimits {
    pub profile: Profile,
    /// Bytes of the unpacked archive: contents, headers and padding.
    pub bytes: u64,
    /// Entries, the archive's own extension records included.
    pub entries: u64,
    /// Unpacked bytes per byte of input, judged once [`Self::ratio_from`] bytes are unpacked.
    pub ratio: u64,
    pub ratio_from: u64,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of a path, and of a symlink's target.
    pub path_bytes: usize,
}

impl UnpackLimits {
    /// Caps of a base image.
    #[must_use]
    pub fn image() -> Self {
        Self {
            profile: Profile::Image,
            bytes: 8 << 30,
            entries: 500_000,
            ratio: 100,
            ratio_from: 64 << 20,
            depth: 64,
            path_bytes: 1024,
        }
    }

    /// Caps of a package: 2 GiB unpacked (a package's blob is at most 500 MB). An app's data may be as regular as it
    /// likes up to 512 MiB.
    #[must_use]
    pub fn package() -> Self {
        Self {
            profile: Profile::Package,
            bytes: 2 << 30,
            entries: 300_000,
            ratio_from: 512 << 20,
            ..Self::image()
        }
    }
}
