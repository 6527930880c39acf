//! What is moved for one act: bytes both ways against its quotas, and the record of how it ended.
//! Used by the proxy for requests and for tunnels.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bulkhead_record::Verdict;
use hyper::HeaderMap;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::quota::{Exhausted, Quotas};
use crate::records::{Act, GAVE_UP, Records};

/// Counts for one act, and records its outcome when nobody holds it any more.
pub(crate) struct Meter {
    quotas: Quotas,
    places: Vec<usize>,
    records: Records,
    act: Act,
    sent: Cell<u64>,
    received: Cell<u64>,
    end: RefCell<(Verdict, String)>,
}

impl Meter {
    /// Begins to count.
    pub(crate) fn new(quotas: Quotas, places: Vec<usize>, records: Records, act: Act) -> Rc<Self> {
        Rc::new(Self {
            quotas,
            places,
            records,
            act,
            sent: Cell::new(0),
            received: Cell::new(0),
            end: RefCell::new((Verdict::Done, String::new())),
        })
    }

    /// It ended so, as far as is known.
    pub(crate) fn ended(&self, verdict: Verdict, reason: String) {
        *self.end.borrow_mut() = (verdict, reason);
    }

    /// Nobody takes the rest. What was the cause of it may be known better already.
    fn cut_short(&self) {
        let mut end = self.end.borrow_mut();
        if end.0 == Verdict::Done {
            *end = (Verdict::Failed, GAVE_UP.to_owned());
        }
    }

    fn count(&self, counter: &Cell<u64>, bytes: usize) -> Result<(), Exhausted> {
        let bytes = bytes as u64;
        counter.set(counter.get().saturating_add(bytes));
        let left = self.quotas.bytes(&self.places, bytes);
        if let Err(exhausted) = &left {
            self.ended(Verdict::Failed, exhausted.to_string());
        }
        left
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let (verdict, reason) = &*self.end.borrow();
        let detail = BTreeMap::from([
            ("sent".to_owned(), self.sent.get().to_string()),
            ("received".to_owned(), self.received.get().to_string()),
        ]);
        self.records.outcome(&self.act, *verdict, reason, detail);
    }
}

/// What is done to trailers on their way.
pub(crate) type Trailers = Box<dyn Fn(&mut HeaderMap)>;

/// Which way bytes go.
pub(crate) enum Way {
    /// To the server.
    Out(Trailers),
    /// To the guest.
    In(Trailers),
}

/// A body that is counted as it goes through.
pub(crate) struct Counted {
    body: Incoming,
    meter: Rc<Meter>,
    way: Way,
    /// Its last frame has gone through.
    is_over: bool,
}

impl Counted {
    /// Counts `body`.
    pub(crate) fn new(body: Incoming, meter: Rc<Meter>, way: Way) -> Self {
        Self {
            body,
            meter,
            way,
            is_over: false,
        }
    }
}

/// Why a body ends before its end.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(mut frame)) => {
                let (Way::Out(change) | Way::In(change)) = &self.way;
                if let Some(trailers) = frame.trailers_mut() {
                    change(trailers);
                    self.is_over = true;
                }
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                let counter = match self.way {
                    Way::Out(_) => &self.meter.sent,
                    Way::In(_) => &self.meter.received,
                };
                match self.meter.count(counter, bytes) {
                    Ok(()) => Some(Ok(frame)),
                    Err(exhausted) => Some(Err(exhausted.into())),
                }
            }
            Some(Err(error)) => {
                self.meter.ended(Verdict::Failed, error.to_string());
                Some(Err(error.into()))
            }
            None => {
                self.is_over = true;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let is_over = self.is_over || self.body.is_end_stream();
        if matches!(self.way, Way::In(_)) && !is_over {
            self.meter.cut_short();
        }
    }
}

/// The guest's stream, counted as bytes go through.
pub(crate) struct Metered<S> {
    stream: S,
    meter: Rc<Meter>,
}

impl<S> Metered<S> {
    /// Counts what goes over `stream`.
    pub(crate) fn new(stream: S, meter: Rc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let count = buffer.filled().len() - before;
        let counted = self.meter.count(&self.meter.sent, count);
        Poll::Ready(counted.map_err(io::Error::other))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        let counted = self.meter.count(&self.meter.received, count);
        Poll::Ready(counted.map(|()| count).map_err(io::Error::other))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
