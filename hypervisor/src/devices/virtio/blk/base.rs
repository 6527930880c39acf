//! What shows through an overlay: images that are only read, each based on the next. Used by the
//! overlay alone, on worker threads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bulkhead_machine::device::ImageFormat;
use vm_memory::VolatileSlice;

use super::file::{HostFile, clear, cut, total};
use super::qcow2::{Mapping, Qcow2, Qcow2Error};

/// Most images in a chain.
const MAX_BASES: usize = 32;

/// A base cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// None at all, or too many.
    #[error("cannot be: an overlay has 1 to 32 bases, not {0}")]
    Count(usize),
    /// The host refused.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Something that never shows through.
    #[error("is the last to show through, but others follow: a raw image has no base")]
    Hides,
    /// What it is based on was not given.
    #[error("is based on another image: give that one as well")]
    Missing,
    /// More was given than it is based on.
    #[error("is based on no other image, but others follow")]
    Unexpected,
    /// A qcow2 image we do not read.
    #[error("{0}")]
    Qcow2(#[from] Qcow2Error),
}

impl BaseError {
    /// Stable code for users.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Count(_) | Self::Hides | Self::Unexpected => "overlay-bases",
            Self::Read(_) => "overlay-base-unreadable",
            Self::Missing => "overlay-base-missing",
            Self::Qcow2(error) => error.code(),
        }
    }
}

/// One image.
enum Layer {
    Raw { file: HostFile, bytes: u64 },
    Qcow2(Box<Qcow2>),
}

/// The chain, the uppermost image first.
pub(super) struct Base {
    layers: Vec<Layer>,
}

impl Base {
    /// The chain of `images`. An error comes with the number of its image.
    pub(super) fn open(images: Vec<(File, ImageFormat)>) -> Result<Self, (usize, BaseError)> {
        let count = images.len();
        if count == 0 || count > MAX_BASES {
            return Err((0, BaseError::Count(count)));
        }
        let mut layers = Vec::with_capacity(count);
        for (index, (file, format)) in images.into_iter().enumerate() {
            let last = index + 1 == count;
            layers.push(Layer::open(file, format, last).map_err(|error| (index, error))?);
        }
        Ok(Self { layers })
    }

    /// Length of the disk it holds.
    pub(super) fn bytes(&self) -> u64 {
        match self.layers.first() {
            Some(Layer::Raw { bytes, .. }) => *bytes,
            Some(Layer::Qcow2(image)) => image.bytes(),
            None => 0,
        }
    }

    /// The file whose bytes are the base's, if there is one: a raw image.
    pub(super) fn raw(&self) -> Option<BorrowedFd<'_>> {
        match self.layers.first() {
            Some(Layer::Raw { file, .. }) => Some(file.as_fd()),
            _ => None,
        }
    }

    /// Fills `slices` from `offset` on; behind its end are zeroes.
    pub(super) fn read(&self, offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
        read(&self.layers, offset, slices)
    }
}

impl Layer {
    fn open(file: File, format: ImageFormat, last: bool) -> Result<Self, BaseError> {
        match format {
            ImageFormat::Raw if !last => Err(BaseError::Hides),
            ImageFormat::Raw => {
                let file = HostFile::new(file, false)?;
                let bytes = file.bytes()?;
                Ok(Self::Raw { file, bytes })
            }
            ImageFormat::Qcow2 => {
                let image = Qcow2::open(file)?;
                match (image.has_backing(), last) {
                    (true, true) => Err(BaseError::Missing),
                    (false, false) => Err(BaseError::Unexpected),
                    _ => Ok(Self::Qcow2(Box::new(image))),
                }
            }
        }
    }
}

fn read(layers: &[Layer], offset: u64, slices: &[VolatileSlice<'_>]) -> io::Result<()> {
    let Some((layer, below)) = layers.split_first() else {
        return clear(slices);
    };
    let len = total(slices);
    let bytes = match layer {
        Layer::Raw { bytes, .. } => *bytes,
        Layer::Qcow2(image) => image.bytes(),
    };
    let inside = (bytes.saturating_sub(offset)).min(len as u64) as usize;
    // Behind the end of an image are zeroes, even where the one below is longer.
    clear(&cut(slices, inside, len - inside)?)?;
    if inside == 0 {
        return Ok(());
    }
    let image = match layer {
        Layer::Raw { file, .. } => return file.read(offset, &cut(slices, 0, inside)?),
        Layer::Qcow2(image) => image,
    };
    let mut done = 0;
    while done < inside {
        let at = offset + done as u64;
        let (mapping, run) = image.map(at, (inside - done) as u64)?;
        let part = cut(slices, done, run as usize)?;
        match mapping {
            Mapping::Below => read(below, at, &part)?,
            Mapping::Zero => clear(&part)?,
            Mapping::Data { host } => image.read_data(host, &part)?,
            Mapping::Compressed(place) => image.read_compressed(place, at, &part)?,
        }
        done += run as usize;
    }
    Ok(())
}
