//! What waits to be sent to one destination: bounded, and what is new drives out what is old.

use std::collections::VecDeque;

/// A queue of batches.
#[derive(Debug)]
pub struct Queue<T> {
    batches: VecDeque<(usize, T)>,
    bytes: usize,
    max_bytes: usize,
    /// Batches that were driven out.
    pub dropped: u64,
}

impl<T> Queue<T> {
    /// An empty one.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            max_bytes,
            dropped: 0,
        }
    }

    /// Adds a batch of so many bytes; the oldest go until there is room. One that is larger than
    /// the whole queue is dropped itself.
    pub fn push(&mut self, bytes: usize, batch: T) {
        self.batches.push_back((bytes, batch));
        self.bytes += bytes;
        while self.bytes > self.max_bytes {
            self.pop();
            self.dropped += 1;
        }
    }

    /// Takes the oldest.
    pub fn pop(&mut self) -> Option<T> {
        let (bytes, batch) = self.batches.pop_front()?;
        self.bytes -= bytes;
        Some(batch)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.batches.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// How large all that wait are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let mut queue = Queue::new(10);
        for batch in 1..=4 {
            queue.push(4, batch);
        }
        assert_eq!((queue.len(), queue.bytes(), queue.dropped), (2, 8, 2));
        assert_eq!(queue.pop(), Some(3));
        queue.push(11, 5);
        assert_eq!((queue.len(), queue.bytes(), queue.dropped), (0, 0, 4));
        assert!(queue.is_empty());
        assert_eq!(queue.pop(), None);
    }
}
