//! The generator, and seeds as text.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use xen::Errno;

/// The bytes of a seed.
pub const SEED: usize = 32;

/// The bytes after which the source adds to the seed.
const RESEED: usize = 1 << 20;

/// Makes numbers from a seed, to which more is added now and then.
pub struct Generator {
    chacha: Option<ChaCha20Rng>,
    /// A seed that the next number takes up: an image that makes no numbers has no ChaCha20.
    given: Option<[u8; SEED]>,
    /// The bytes until the next seed.
    left: usize,
}

impl Generator {
    /// A generator without a seed.
    pub const fn new() -> Self {
        Generator { chacha: None, given: None, left: 0 }
    }

    /// Fills a buffer. [`Errno::ENODEV`] if there is no seed, and the source gives none.
    pub fn fill(
        &mut self,
        bytes: &mut [u8],
        source: impl Fn() -> Option<[u8; SEED]>,
    ) -> Result<(), Errno> {
        if let Some(seed) = self.given.take() {
            self.mix(seed);
        }
        for part in bytes.chunks_mut(RESEED) {
            if self.left < part.len()
                && let Some(seed) = source()
            {
                self.mix(seed);
            }
            self.chacha.as_mut().ok_or(Errno::ENODEV)?.fill_bytes(part);
            self.left = self.left.saturating_sub(part.len());
        }
        Ok(())
    }

    /// Adds a seed to the present one.
    pub fn give(&mut self, seed: [u8; SEED]) {
        self.given = Some(seed);
    }

    fn mix(&mut self, mut seed: [u8; SEED]) {
        if let Some(chacha) = &mut self.chacha {
            let mut present = [0; SEED];
            chacha.fill_bytes(&mut present);
            seed.iter_mut().zip(present).for_each(|(byte, present)| *byte ^= present);
        }
        self.chacha = Some(ChaCha20Rng::from_seed(seed));
        self.left = RESEED;
    }

    /// Forgets the seed.
    pub fn forget(&mut self) {
        *self = Generator::new();
    }
}

/// The seed that 64 hexadecimal digits are.
pub fn parse(text: &str) -> Option<[u8; SEED]> {
    let (digits, []) = text.trim_ascii().as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        Some((high? << 4 | low?) as u8)
    };
    let mut seed = [0; SEED];
    if digits.len() != SEED {
        return None;
    }
    for (to, pair) in seed.iter_mut().zip(digits) {
        *to = byte(pair)?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(generator: &mut Generator, source: Option<[u8; SEED]>) -> Result<[u8; 64], Errno> {
        let mut bytes = [0; 64];
        generator.fill(&mut bytes, || source)?;
        Ok(bytes)
    }

    #[test]
    fn without_a_source_there_are_no_numbers() {
        let mut generator = Generator::new();
        assert_eq!(filled(&mut generator, None), Err(Errno::ENODEV));
        generator.give([1; SEED]);
        assert!(filled(&mut generator, None).is_ok());
        generator.forget();
        assert_eq!(filled(&mut generator, None), Err(Errno::ENODEV));
    }

    #[test]
    fn numbers_depend_on_each_seed_and_do_not_repeat() {
        let (mut one, mut other) = (Generator::new(), Generator::new());
        let first = filled(&mut one, Some([1; SEED])).unwrap();
        assert_eq!(filled(&mut other, Some([1; SEED])), Ok(first));
        assert_ne!(filled(&mut one, None), Ok(first));
        filled(&mut other, None).unwrap();
        // The former seed still counts.
        one.give([2; SEED]);
        let mut fresh = Generator::new();
        fresh.give([2; SEED]);
        let second = filled(&mut one, None).unwrap();
        assert_ne!(filled(&mut fresh, None), Ok(second));
        other.give([3; SEED]);
        assert_ne!(filled(&mut other, None), Ok(second));
    }

    #[test]
    fn the_source_adds_to_the_seed_now_and_then() {
        let (mut generator, asked) = (Generator::new(), core::cell::Cell::new(0));
        let source = || {
            asked.set(asked.get() + 1);
            Some([7; SEED])
        };
        let mut bytes = [0; 1024];
        for _ in 0..3 * RESEED / bytes.len() {
            generator.fill(&mut bytes, source).unwrap();
        }
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_seed_has_64_digits() {
        let text = "00ff".repeat(16);
        let seed = parse(&text).unwrap();
        assert_eq!((seed[0], seed[1], seed[31]), (0, 255, 255));
        assert_eq!(parse(&format!("{}\n", text.to_uppercase())), Some(seed));
        for bad in ["", "00", &text[1..], &format!("{text}00"), &text.replace("ff", "fg")] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
