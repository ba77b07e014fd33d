//! The nodes as the control plane meets them: one task per configured agent keeps what is wanted and
//! what is seen in step, and [`Observed`] holds what is seen.

mod observed;

pub use observed::{NodeView, Observed};
