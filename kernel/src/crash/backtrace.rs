//! Backtraces, from the chain of frame pointers, which all functions of the image keep: the
//! target's JSON demands it, and the core library is built for it, too.
//!
//! A crash may have corrupted anything, so a frame is used only if it is aligned, in one of the
//! kernel's stacks, and above the frame before. The walk reads nothing else, and it ends.

use core::ops::Range;

/// The most addresses in a backtrace.
pub const MOST: usize = 32;

/// The state of interrupted code.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// The instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The frame pointer.
    pub rbp: u64,
}

/// The memory that a backtrace is made from.
#[derive(Debug)]
pub struct Memory<R> {
    /// The code.
    pub code: Range<u64>,
    /// The stacks.
    pub stacks: [Range<u64>; 4],
    /// Reads the word at an address, which is a multiple of 8, with all 8 bytes in a stack.
    pub read: R,
}

/// The addresses of a backtrace, innermost first: the instruction, then the calls that led to it.
/// The address of a call is its last byte, because the return address may belong to the next line
/// or even to the next function.
#[derive(Debug)]
pub struct Backtrace<R> {
    memory: Memory<R>,
    /// The next addresses, as far as they are known without the frame.
    next: [Option<u64>; 2],
    frame: u64,
    left: usize,
}

impl<R: Fn(u64) -> u64> Backtrace<R> {
    /// Starts at an interrupted instruction.
    pub fn new(memory: Memory<R>, from: From) -> Self {
        // A call to an address that is not code has made no frame yet: its return address is on
        // top of the stack.
        let caller = if memory.code.contains(&from.rip) {
            None
        } else {
            memory.word(from.rsp).and_then(|address| memory.call_before(address))
        };
        Backtrace { memory, next: [Some(from.rip), caller], frame: from.rbp, left: MOST }
    }

    fn caller(&mut self) -> Option<u64> {
        let (frame, memory) = (self.frame, &self.memory);
        let outer = memory.word(frame)?;
        let caller = memory.call_before(memory.word(frame.checked_add(8)?)?)?;
        // An outer frame has a higher address; the outermost frame has none.
        self.frame = if outer > frame { outer } else { 0 };
        Some(caller)
    }
}

impl<R: Fn(u64) -> u64> Memory<R> {
    /// A word of a stack.
    fn word(&self, address: u64) -> Option<u64> {
        let end = address.checked_add(8)?;
        let lies_in = |stack: &Range<u64>| stack.start <= address && end <= stack.end;
        (address.is_multiple_of(8) && self.stacks.iter().any(lies_in)).then(|| (self.read)(address))
    }

    /// The call with this return address, if there can be one.
    fn call_before(&self, address: u64) -> Option<u64> {
        let call = address.checked_sub(1)?;
        self.code.contains(&call).then_some(call)
    }
}

impl<R: Fn(u64) -> u64> Iterator for Backtrace<R> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let known = self.next.iter_mut().find_map(Option::take);
        known.or_else(|| self.caller())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The backtrace over a stack of these words, from 0x1000 on.
    fn trace(from: From, words: &[u64]) -> Vec<u64> {
        let stack = 0x1000..0x1000 + 8 * words.len() as u64;
        let read = |address: u64| {
            assert!(address.is_multiple_of(8), "{address:#x}");
            words[(address - 0x1000) as usize / 8]
        };
        let empty = 0x10..0x10;
        let stacks = [empty.clone(), stack, empty.clone(), empty];
        let memory = Memory { code: 0x100..0x200, stacks, read };
        Backtrace::new(memory, from).collect()
    }

    const FROM: From = From { rip: 0x110, rsp: 0x1000, rbp: 0x1000 };

    #[test]
    fn frames_are_followed_up_to_the_outermost() {
        let words = [0x1018, 0x121, 7, 0x1028, 0x131, 0, 0x141, 0, 0x151];
        assert_eq!(trace(FROM, &words), [0x110, 0x120, 0x130, 0x140]);
        assert_eq!(trace(From { rbp: 0x1018, ..FROM }, &words), [0x110, 0x130, 0x140]);
    }

    #[test]
    fn the_caller_of_a_bad_address_is_on_top_of_the_stack() {
        let words = [0x121, 0, 0, 0x131];
        let from = From { rip: 0, rsp: 0x1000, rbp: 0x1010 };
        assert_eq!(trace(from, &words), [0, 0x120, 0x130]);
        assert_eq!(trace(From { rsp: 8, ..from }, &words), [0, 0x130]);
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_stack_ends() {
        let words = [0x1000, 0x121, 0x1000, 0x131];
        assert_eq!(trace(FROM, &words), [0x110, 0x120]);
        assert_eq!(trace(From { rbp: 0x1010, ..FROM }, &words), [0x110, 0x130]);
        for outer in [0x1009, 0x1018, 0x1020, 0xff8, u64::MAX, u64::MAX - 7] {
            assert_eq!(trace(FROM, &[outer, 0x121, 0, 0]), [0x110, 0x120], "{outer:#x}");
        }
        for rbp in [0, 1, 0x1004, 0x1018, u64::MAX, u64::MAX - 7, 0x10] {
            assert_eq!(trace(From { rbp, ..FROM }, &[0, 0x121, 0, 0x131]), [0x110], "{rbp:#x}");
        }
    }

    #[test]
    fn a_return_address_outside_of_code_ends_the_chain() {
        for address in [0, 0x100, 0x201, u64::MAX] {
            assert_eq!(trace(FROM, &[0x1010, address, 0, 0x131]), [0x110], "{address:#x}");
        }
    }

    #[test]
    fn an_endless_recursion_is_cut_off() {
        let words: Vec<u64> = (0..100).flat_map(|n| [0x1010 + 16 * n, 0x121]).collect();
        assert_eq!(trace(FROM, &words).len(), MOST);
    }
}
