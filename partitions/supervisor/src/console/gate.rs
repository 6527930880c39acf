//! Holds input back until a guest agent is ready for it.
//!
//! A Linux console echoes what arrives before the agent has set it up. So the agent says on the
//! console when it has, and its word is taken out of the output.

use super::Output;
use bulkhead_guest_agent::READY;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Output in which the agent's word is looked for, once.
pub(crate) struct Gate {
    to: Box<dyn Output>,
    /// Dropped when the word was found, or when the output has ended without it.
    opener: Option<Sender<()>>,
    /// What may be the beginning of the word.
    held: Vec<u8>,
}

impl Gate {
    /// Watches what is passed on to `to`. The receiver gets one message, or is hung up on when the
    /// word can no longer come.
    pub(crate) fn new(to: Box<dyn Output>) -> (Self, Receiver<()>) {
        let (opener, opened) = channel();
        (
            Self {
                to,
                opener: Some(opener),
                held: Vec::new(),
            },
            opened,
        )
    }
}

impl Output for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(opener) = &self.opener else {
            return self.to.write(bytes);
        };
        self.held.extend_from_slice(bytes);
        let word = self
            .held
            .windows(READY.len())
            .position(|window| window == READY);
        if let Some(at) = word {
            // Nobody may be there to pass input on.
            let _ = opener.send(());
            self.opener = None;
            self.held.drain(at..at + READY.len());
            return self.to.write(&std::mem::take(&mut self.held));
        }
        let longest = READY.len().min(self.held.len());
        let begun = (0..=longest).rev().find(|len| {
            READY
                .get(..*len)
                .is_some_and(|beginning| self.held.ends_with(beginning))
        });
        let sure = self.held.len() - begun.unwrap_or(0);
        let rest = self.held.split_off(sure);
        let sure = std::mem::replace(&mut self.held, rest);
        if sure.is_empty() {
            Ok(())
        } else {
            self.to.write(&sure)
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        self.opener = None;
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.to.write(&held)?;
        }
        self.to.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    struct Collect(Arc<Mutex<Vec<u8>>>);

    impl Output for Collect {
        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }

        fn finish(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is passed on of `pieces`, and whether the gate was opened.
    fn pass<P: AsRef<[u8]>>(pieces: &[P]) -> (Vec<u8>, bool) {
        let passed = Arc::new(Mutex::new(Vec::new()));
        let (mut gate, opened) = Gate::new(Box::new(Collect(passed.clone())));
        for piece in pieces {
            gate.write(piece.as_ref()).unwrap();
        }
        gate.finish().unwrap();
        let bytes = passed.lock().unwrap().clone();
        (bytes, opened.recv().is_ok())
    }

    #[test]
    fn the_word_opens_the_gate_and_is_taken_out_once() {
        let text = [b"a", READY, b"b", READY].concat();
        assert_eq!(pass(&[&text]), ([b"ab", READY].concat(), true));
        assert_eq!(pass(&[b"no word"]), (b"no word".to_vec(), false));
        let half = &READY[..5];
        assert_eq!(pass(&[half]), (half.to_vec(), false));
        assert_eq!(pass(&[half, READY]), (half.to_vec(), true));
    }

    #[test]
    fn nothing_is_held_that_cannot_be_the_word() {
        let passed = Arc::new(Mutex::new(Vec::new()));
        let (mut gate, _opened) = Gate::new(Box::new(Collect(passed.clone())));
        gate.write(b"prompt> ").unwrap();
        assert_eq!(*passed.lock().unwrap(), b"prompt> ");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            before in prop::collection::vec(any::<u8>(), 0..40),
            after in prop::collection::vec(any::<u8>(), 0..40),
            cuts in prop::collection::vec(0_usize..100, 0..6),
        ) {
            let text = [before.as_slice(), READY, after.as_slice()].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(pass(&pieces), ([before, after].concat(), true));
        }
    }
}
