//! Kernel objects in RAM, and typed references to them. All rooms of [`crate::objects`] reach
//! objects through [`Memory`] and nothing else; whoever drives the logic implements it: the kernel
//! over its direct map, tests over a vector.
//!
//! A [`Ref`] is made only where memory is retyped or a stored reference is read back, never from
//! a number that user space passed. Every stored type is plain words, so that whatever lies in
//! the memory is a valid value: a fault in this crate can confuse capabilities, not Rust.

use core::cmp::Ordering;
use core::fmt;
use core::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Guest-physical addresses have at most this many bits (AMD64 Architecture Programmer's Manual
/// volume 2, section 5.1).
pub const ADDRESS_BITS: u32 = 52;

/// A type that lies in memory handed out by retype: plain words, valid whatever they are.
pub trait Stored: FromBytes + IntoBytes + KnownLayout + Immutable {}

/// Where an object of type `T` lies, by guest-physical address.
#[repr(transparent)]
pub struct Ref<T> {
    address: u64,
    object: PhantomData<fn() -> T>,
}

impl<T> Ref<T> {
    /// The object at `address`.
    pub(crate) const fn new(address: u64) -> Self {
        Self {
            address,
            object: PhantomData,
        }
    }

    /// What a stored link says: zero is no object, for page 0 is never handed out.
    pub(crate) const fn from_link(link: u64) -> Option<Self> {
        if link == 0 {
            None
        } else {
            Some(Self::new(link))
        }
    }

    /// The guest-physical address.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.address
    }
}

/// A link as it is stored.
pub(crate) fn link<T>(to: Option<Ref<T>>) -> u64 {
    to.map_or(0, Ref::address)
}

impl<T: Stored> Ref<T> {
    /// The `index`th of the objects that lie in a row from here.
    pub(crate) const fn at(self, index: u64) -> Self {
        Self::new(self.address + index * size_of::<T>() as u64)
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ref<T> {}

impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl<T> Eq for Ref<T> {}

impl<T> PartialOrd for Ref<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ref<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.address.cmp(&other.address)
    }
}

impl<T> core::hash::Hash for Ref<T> {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

/// The RAM that objects lie in.
pub trait Memory {
    /// The object at `at`.
    fn get<T: Stored>(&self, at: Ref<T>) -> &T;
    /// The object at `at`, to change.
    fn get_mut<T: Stored>(&mut self, at: Ref<T>) -> &mut T;
    /// The word at `address` in a page table, or in a page that user mode can reach, and change at
    /// any time.
    fn load(&self, address: u64) -> u64;
    /// Writes a word there.
    fn store(&mut self, address: u64, word: u64);
    /// `count` words of one page table, from the one at `address` on.
    fn entries(&mut self, address: u64, count: u64) -> &mut [u64];
    /// Fills `bytes` bytes from `address` with zero; both are multiples of [`super::UNIT`].
    fn zero(&mut self, address: u64, bytes: u64);
    /// Forgets the translation of a user address, where the address space with this root is active.
    fn forget(&mut self, root: u64, address: u64);
    /// Forgets all translations of user addresses, where the address space with this root is active.
    fn forget_all(&mut self, root: u64);
    /// Activates another address space, where the one with this root is active: it goes.
    fn leave(&mut self, root: u64);
    /// The time stamp counter, which all CPUs share.
    fn now(&mut self) -> u64;
    /// Has another CPU enter the kernel, as soon as this one has left it.
    fn call_cpu(&mut self, cpu: usize);
    /// Stops a program that another CPU runs, until this one has left the kernel, with its registers
    /// in its frame; FS and GS base of that CPU. A system call that the program was about to make is
    /// not made: the program is back at the instruction.
    fn stop_cpu(&mut self, cpu: usize) -> [u64; 2];
    /// Whether something urgent waits, such as the timer's interrupt: long work then stops where it
    /// is and is taken up again.
    fn preemption_pending(&mut self) -> bool;
}
