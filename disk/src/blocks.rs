//! What is served: blocks that can be read and written.

use crate::protocol::Failure;
use idc::LocalBuffer;

/// Numbered blocks of [`BLOCK`](crate::BLOCK) bytes. Buffers have whole blocks.
///
/// Each future may be dropped at any time. A write that was dropped was carried out or was not; in
/// both cases, later accesses to its blocks come after it.
pub trait Blocks {
    /// How many blocks there are.
    async fn size(&self) -> Result<u64, Failure>;

    /// Reads blocks, as many as `into` has. Returns how many of them came out of a cache.
    async fn read(&self, first: u64, into: &LocalBuffer) -> Result<u32, Failure>;

    /// Writes blocks, as many as `from` has. Nobody else accesses them meanwhile.
    async fn write(&self, first: u64, from: &LocalBuffer) -> Result<(), Failure>;

    /// Makes sure that what was written lasts.
    async fn flush(&self) -> Result<(), Failure>;
}
