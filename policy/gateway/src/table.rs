//! Tables of bounded size whose entries are named by tokens. Used by everything that waits for a
//! socket or a moment.

use std::iter;

/// What a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The link to the guest.
    Link,
    /// The control socket.
    Control,
    /// A listening socket.
    Listener,
    /// A TCP connection.
    Tcp,
    /// A UDP flow.
    Udp,
    /// A DNS query.
    Dns,
    /// What was recorded.
    Records,
    /// The socket of the partition's tools.
    Tools,
}

/// Names an entry of a table, and no later entry in the same place: what an event of the host was
/// about, though it may have been closed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Which table.
    pub kind: Kind,
    place: u32,
    generation: u32,
}

/// Bits of a generation in [`Token::pack`].
const GENERATION_BITS: u32 = 28;

impl Token {
    /// A token that stands for itself, outside any table.
    pub fn lone(kind: Kind, place: u32) -> Self {
        Self {
            kind,
            place,
            generation: 0,
        }
    }

    /// The listening socket with this index in the description.
    pub fn listener(index: u32) -> Self {
        Self::lone(Kind::Listener, index)
    }

    /// The place in the table.
    pub fn place(self) -> usize {
        usize::try_from(self.place).unwrap_or(usize::MAX)
    }

    /// As the host's event queue keeps it.
    pub fn pack(self) -> u64 {
        let kind: u64 = match self.kind {
            Kind::Link => 0,
            Kind::Control => 1,
            Kind::Listener => 2,
            Kind::Tcp => 3,
            Kind::Udp => 4,
            Kind::Dns => 5,
            Kind::Records => 6,
            Kind::Tools => 7,
        };
        kind << 60 | u64::from(self.generation) << 32 | u64::from(self.place)
    }

    /// The reverse of [`Self::pack`].
    pub fn unpack(packed: u64) -> Option<Self> {
        let kind = match packed >> 60 {
            0 => Kind::Link,
            1 => Kind::Control,
            2 => Kind::Listener,
            3 => Kind::Tcp,
            4 => Kind::Udp,
            5 => Kind::Dns,
            6 => Kind::Records,
            7 => Kind::Tools,
            _ => return None,
        };
        let generation = packed >> 32 & ((1 << GENERATION_BITS) - 1);
        Some(Self {
            kind,
            place: u32::try_from(packed & u64::from(u32::MAX)).ok()?,
            generation: u32::try_from(generation).ok()?,
        })
    }
}

/// Entries in places that are used again.
#[derive(Debug)]
pub(crate) struct Table<T> {
    kind: Kind,
    limit: usize,
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    /// An empty table for `limit` entries.
    pub(crate) fn new(kind: Kind, limit: usize) -> Self {
        Self {
            kind,
            limit,
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether nothing more fits in.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The token that the next [`Self::insert`] gives; `None` when the table is full.
    pub(crate) fn next(&self) -> Option<Token> {
        let (place, generation) = match self.free.last() {
            Some(place) => (*place, self.generation(*place)?),
            None if self.is_full() => return None,
            None => (u32::try_from(self.places.len()).ok()?, 0),
        };
        Some(Token {
            kind: self.kind,
            place,
            generation,
        })
    }

    /// Adds an entry; gives it back when the table is full.
    pub(crate) fn insert(&mut self, entry: T) -> Result<Token, T> {
        let Some(token) = self.next() else {
            return Err(entry);
        };
        if self.free.pop().is_none() {
            self.places.push((0, Some(entry)));
        } else if let Some((_, place)) = self.places.get_mut(token.place()) {
            *place = Some(entry);
        }
        Ok(token)
    }

    /// The entry of this token, if it is still there.
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        match self.places.get_mut(token.place()) {
            Some((generation, entry)) if *generation == token.generation => entry.as_mut(),
            _ => None,
        }
    }

    /// Takes the entry of this token out.
    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let (generation, place) = self.places.get_mut(token.place())?;
        if *generation != token.generation {
            return None;
        }
        let entry = place.take()?;
        *generation = (*generation + 1) & ((1 << GENERATION_BITS) - 1);
        self.free.push(token.place);
        Some(entry)
    }

    /// All entries with their tokens.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        iter::zip(0.., &self.places).filter_map(|(place, (generation, entry))| {
            let token = Token {
                kind: self.kind,
                place,
                generation: *generation,
            };
            entry.as_ref().map(|entry| (token, entry))
        })
    }

    fn generation(&self, place: u32) -> Option<u32> {
        let place = usize::try_from(place).ok()?;
        self.places.get(place).map(|(generation, _)| *generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn holds_as_much_as_it_may() {
        let mut table = Table::new(Kind::Tcp, 2);
        let a = table.insert('a').unwrap();
        let b = table.insert('b').unwrap();
        assert_eq!(table.insert('c'), Err('c'));
        assert_eq!(table.remove(a), Some('a'));
        let announced = table.next().unwrap();
        let c = table.insert('c').unwrap();
        assert_eq!(announced, c);
        assert_eq!(table.get_mut(a), None, "its place has another entry now");
        assert_eq!(table.remove(a), None);
        assert_eq!(table.iter().collect::<Vec<_>>(), [(c, &'c'), (b, &'b')]);
        assert_eq!(table.len(), 2);
    }

    proptest! {
        #[test]
        fn tokens_pack_and_unpack(place: u32, generation in 0_u32..1 << GENERATION_BITS) {
            for kind in [
                Kind::Link, Kind::Control, Kind::Listener, Kind::Tcp, Kind::Udp, Kind::Dns,
                Kind::Records,
            ] {
                let token = Token { kind, place, generation };
                prop_assert_eq!(Token::unpack(token.pack()), Some(token));
            }
        }

        #[test]
        fn any_number_unpacks_or_not(packed: u64) {
            if let Some(token) = Token::unpack(packed) {
                prop_assert_eq!(token.pack(), packed);
            }
        }
    }
}
