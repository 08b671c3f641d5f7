//! Changing a stream on its way.

/// What to do with what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Rewrite it as well.
    Continue,
    /// Carry everything else as it is.
    Done,
}

/// A stream that cannot be carried on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The server accepts only authentication that is bound to a TLS channel of the agent's own.
    #[error("{0}")]
    ChannelBinding(String),
    /// It is not the protocol that it began as.
    #[error("{0}")]
    Protocol(String),
}

/// Changes one direction of a session. Splitting the input in other pieces changes nothing of
/// the output; what is held back is bounded.
pub trait Rewrite: Send + std::fmt::Debug {
    /// How many bytes from the front of `input` are carried as they are. They count as taken, and
    /// the rest is given to [`Self::rewrite`]. A long span that nobody changes is not copied so.
    ///
    /// # Errors
    /// The session must end, and nothing of `input` is carried.
    fn pass(&mut self, _input: &[u8]) -> Result<usize, RewriteError> {
        Ok(0)
    }

    /// Takes the next bytes and appends to `out` what is carried in their place. After
    /// [`Next::Done`] all of `input` is in `out`, and there are no more calls.
    ///
    /// # Errors
    /// The session must end. What is in `out` is not carried.
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, RewriteError>;

    /// What this direction says of its own accord, now that all that came before is carried: the answer
    /// to what the other direction has refused.
    fn speak(&mut self, _out: &mut Vec<u8>) {}

    /// Was what this direction has said of its own accord the last of it?
    fn is_over(&self) -> bool {
        false
    }

    /// Has the protocol itself said that nothing more comes? Such a stream may end without TLS'
    /// own goodbye, which many servers leave out then.
    fn has_ended(&self) -> bool {
        false
    }

    /// The stream has ended; appends what was held back.
    fn finish(&mut self, _out: &mut Vec<u8>) {}
}
