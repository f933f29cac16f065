//! What an end is ready to receive.

/// The limits of what one end of a connection receives. They bound the memory that an endpoint
/// takes, all of which is allocated before it is created.
///
/// The other end is told before it connects, and keeps to it: whoever exceeds the quota of his peer
/// loses the connection.
///
/// ```
/// use idc::Quota;
/// let quota = Quota { messages: 4, message: 256, transactions: 8, parameters: 64, status: 64 };
/// assert_eq!(quota.memory(), 4 * 256 + 8 * 64 + 8 * 64);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quota {
    /// The most messages that were received and not finished.
    pub messages: u16,
    /// The most bytes of a message.
    pub message: u32,
    /// The most transactions at a time: those received and not answered, and likewise those
    /// submitted and not finished.
    pub transactions: u16,
    /// The most bytes of a received transaction's parameters.
    pub parameters: u32,
    /// The most bytes of the status that answers a submitted transaction.
    pub status: u32,
}

impl Quota {
    /// The most bytes that a quota may need. No end believes that another has more.
    pub const MAX_MEMORY: u64 = 256 << 20;

    /// The bytes that an endpoint with this quota needs for what it receives.
    pub fn memory(&self) -> u64 {
        let transaction = u64::from(self.parameters) + u64::from(self.status);
        u64::from(self.messages) * u64::from(self.message)
            + u64::from(self.transactions) * transaction
    }

    /// The bytes that must not be more than [`MAX_MEMORY`](Quota::MAX_MEMORY). Of what there is
    /// none, one counts: whoever reads a length may allocate so much.
    pub(crate) fn claim(&self) -> u64 {
        let Quota { messages, transactions, .. } = *self;
        let one = Quota { messages: messages.max(1), transactions: transactions.max(1), ..*self };
        one.memory()
    }

    /// Whether an endpoint may have this quota.
    pub fn is_believed(&self) -> bool {
        self.claim() <= Self::MAX_MEMORY
    }
}
