//! A rotary embedding's angles for as many positions as were met.

use std::cell::RefCell;
use std::rc::Rc;

use super::rope::Rope;
use crate::ops::rope::RopeTable;

/// A table of angles that grows with the longest sequence seen.
pub(super) struct GrowingRope {
    frequencies: Vec<f32>,
    head_size: usize,
    scale: f32,
    table: RefCell<Rc<RopeTable>>,
}

impl GrowingRope {
    pub(super) fn new(rope: &Rope, head_size: usize) -> Self {
        let (frequencies, scale) = (rope.frequencies(), rope.scale());
        let table = RefCell::new(Rc::new(RopeTable::new(&frequencies, head_size, scale, 1)));
        Self { frequencies, head_size, scale, table }
    }

    /// A table for positions up to these.
    pub(super) fn up_to(&self, positions: &[u32]) -> Rc<RopeTable> {
        let needed = positions.iter().max().map_or(1, |&last| last as usize + 1);
        if needed > self.table.borrow().positions() {
            let table = RopeTable::new(&self.frequencies, self.head_size, self.scale, needed.next_power_of_two());
            self.table.replace(Rc::new(table));
        }
        Rc::clone(&self.table.borrow())
    }
}
