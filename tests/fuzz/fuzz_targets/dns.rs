//! No message panics, and over TCP the pieces do not matter.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use mantled_wire::{
    Next, Rewrite, RewriteError,
    dns::{self, Learner},
};

type Learnt = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Default)]
struct Pupil(Mutex<Learnt>);

impl Learner for Pupil {
    fn learn(&self, query: &[u8], answer: &[u8]) {
        let pair = (query.to_vec(), answer.to_vec());
        self.0.lock().expect("nobody panics").push(pair);
    }
}

type Carried = (Result<Next, RewriteError>, Vec<u8>);

/// Both directions, each in pieces of this size; what is carried, and what is learnt.
fn converse(queries: &[u8], answers: &[u8], size: usize) -> ([Carried; 2], Learnt) {
    let pupil = Arc::new(Pupil::default());
    let (mut out, mut back) = dns::over_tcp(Arc::clone(&pupil) as Arc<dyn Learner>);
    let carry = |rewrite: &mut dyn Rewrite, stream: &[u8]| {
        let mut carried = Vec::new();
        for piece in stream.chunks(size) {
            if let Err(error) = rewrite.rewrite(piece, &mut carried) {
                // What is carried before an error is not sent, so it does not count.
                return (Err(error), Vec::new());
            }
        }
        (Ok(Next::Continue), carried)
    };
    let carried = [carry(&mut out, queries), carry(&mut back, answers)];
    drop((out, back));
    let learnt = std::mem::take(&mut *pupil.0.lock().expect("nobody panics"));
    (carried, learnt)
}

fuzz_target!(|input: (&[u8], &[u8])| {
    let (query, answer) = input;
    if let Ok(question) = dns::question(query) {
        assert!(!question.name.is_empty() && question.name.len() <= 253);
        assert_eq!(question.name, question.name.to_ascii_lowercase());
        if let Ok(addresses) = dns::addresses(answer, &question) {
            assert!(addresses.len() <= 256);
            assert_eq!(query.get(..2), answer.get(..2), "the id matches");
        }
    }
    let (whole, learnt) = converse(query, answer, usize::MAX);
    let (pieces, learnt_in_pieces) = converse(query, answer, 1);
    assert_eq!(whole, pieces);
    if whole[0].0.is_ok() {
        assert_eq!(learnt, learnt_in_pieces);
    }
});
