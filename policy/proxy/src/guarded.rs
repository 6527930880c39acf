//! The guest's stream as the HTTP/1 parser is given it: what [`Framing`] does not let through never
//! comes, the stream seems to end there. Used by the proxy.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::framing::{Framing, MAX_HEAD, Violation};

/// Most bytes taken from the guest at a time.
const PIECE: usize = 16 * 1024;

struct Inner<S> {
    stream: S,
    framing: Framing,
    /// What was taken; the first `ready` of it may be given on.
    held: Vec<u8>,
    ready: usize,
    violation: Option<Violation>,
    /// The protocol was changed: it is no HTTP any more.
    raw: bool,
}

/// A stream, for the parser; clones are the same stream.
pub(crate) struct Guarded<S>(Arc<Mutex<Inner<S>>>);

impl<S> Clone for Guarded<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Guarded<S> {
    /// Guards `stream`.
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            framing: Framing::default(),
            held: Vec::new(),
            ready: 0,
            violation: None,
            raw: false,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // Only this thread locks it, and a panic ends the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ended it before its end.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.inner().violation
    }

    /// Ends the stream after an answer of ours.
    pub(crate) async fn end(&mut self) -> io::Result<()>
    where
        S: AsyncWrite + Unpin,
    {
        self.inner().violation = None;
        self.shutdown().await
    }

    /// What follows the request that was read last is no HTTP.
    pub(crate) fn end_http(&self) {
        let mut inner = self.inner();
        inner.raw = true;
        inner.framing.end_http();
    }
}

impl<S> Inner<S> {
    /// Looks at what was taken; what is wrong ends it.
    fn check(&mut self) {
        while self.violation.is_none() {
            let rest = self.held.get(self.ready..).unwrap_or_default();
            match self.framing.advance(rest) {
                Ok(0) => return,
                Ok(count) => self.ready += count,
                Err(violation) => self.violation = Some(violation),
            }
        }
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.ready.min(buffer.remaining());
        buffer.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.drain(..count);
        self.ready -= count;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut guard = self.inner();
        let inner = &mut *guard;
        loop {
            if inner.ready == 0 {
                inner.check();
            }
            if inner.ready > 0 {
                inner.give(buffer);
                return Poll::Ready(Ok(()));
            }
            // Longer than a head is only what is wrong, which `check` has found.
            if inner.violation.is_some() || inner.held.len() > MAX_HEAD + PIECE {
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; PIECE];
            let mut taken = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut inner.stream).poll_read(context, &mut taken))?;
            if taken.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            inner.held.extend_from_slice(taken.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().stream).poll_flush(context)
    }

    /// Ends the stream only where no answer of ours can follow.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        match inner.violation.is_some() && !inner.raw {
            true => Pin::new(&mut inner.stream).poll_flush(context),
            false => Pin::new(&mut inner.stream).poll_shutdown(context),
        }
    }
}
