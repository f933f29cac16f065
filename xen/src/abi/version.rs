//! `version.h`: what hypervisor this is.

/// The version: the major number in the upper half word of the result, the minor in the lower.
pub const XENVER_VERSION: u32 = 0;
/// The rest of the version, as text.
pub const XENVER_EXTRAVERSION: u32 = 1;
/// The features, 32 at a time (see [`features`](super::features)).
pub const XENVER_GET_FEATURES: u32 = 6;

/// Argument of [`XENVER_GET_FEATURES`] (`struct xen_feature_info`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FeatureInfo {
    /// Which 32 features.
    pub submap_idx: u32,
    /// Out: a bit for each.
    pub submap: u32,
}

const _: () = assert!(size_of::<FeatureInfo>() == 8);
