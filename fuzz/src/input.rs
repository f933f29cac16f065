//! An input, read from its beginning. Missing bytes at its end are zero.

use xensock::wire::{Dialect, Extensions, Protocol};

/// A domain whose steps an input chooses.
pub trait Player {
    /// Takes the step with this number, below 128.
    fn step(&mut self, step: u8, input: &mut Input<'_>);

    /// Lets the other end react.
    fn settle(&mut self);
}

/// Takes steps until the input ends.
pub fn play_steps(player: &mut impl Player, input: &mut Input<'_>) {
    while !input.is_empty() {
        let step = input.byte();
        player.step(step & 0x7f, input);
        // Several steps may be taken before the other end reacts.
        if step & 0x80 == 0 {
            player.settle();
        }
    }
}

/// The rest of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Input(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// The next bytes: a length, then at most this many.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    /// All remaining bytes.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// An index, mostly near another one.
    pub fn index(&mut self, near: u32) -> u32 {
        match self.byte() {
            255 => self.u32(),
            254 => near.wrapping_add(self.u32()),
            step @ 128.. => near.wrapping_sub(u32::from(step - 127)),
            step => near.wrapping_add(u32::from(step)),
        }
    }

    /// Any dialect with any extensions.
    pub fn protocol(&mut self) -> Protocol {
        let byte = self.byte();
        let dialect = Dialect::ALL[usize::from(byte >> 7)];
        Protocol { dialect, extensions: Extensions::from_bits_truncate(byte) }
    }
}
