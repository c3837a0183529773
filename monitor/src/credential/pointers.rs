//! Places of credentials that variables name.

use super::Credentials;
use crate::{
    observed::{file::FileId, variable::ObservedVariable},
    reader::protocol::PointedPlace,
};
use monitor_core::catalog::kernel_filter::FilterRules;

/// Maximum places named by variables. Anyone who can start programs can invent any number of them,
/// so any more are ignored.
const POINTED_PLACES_MAX: usize = 1024;
/// As [`POINTED_PLACES_MAX`], per container, and for the host.
const POINTED_PER_CONTAINER_MAX: usize = 256;

impl Credentials {
    /// The entries of the kernel filter.
    pub fn rules(&self) -> FilterRules {
        let paths = self.pointed.keys().map(|(_, path)| path.as_str());
        self.catalog.filter_rules(paths)
    }

    /// Whether a variable points to a credential and its value was not followed before.
    pub fn points(&mut self, variable: &ObservedVariable, container: &str) -> Option<u64> {
        self.catalog.pointers(&variable.name).next()?;
        let value = format!("{}\0{container}\0{}", variable.name, variable.fingerprint);
        let print = self.print_of(&value);
        self.followed.get(&print).is_none().then_some(print)
    }

    /// Learns the places that a process's environment names: files there become credentials of its
    /// container. Returns the files, and whether any place is new. `values` are those that were
    /// followed.
    ///
    /// Anyone can point anywhere: places beyond the limits are ignored, and a file counts only if
    /// its contents have the form of a credential.
    pub fn add_places(
        &mut self,
        container: &str,
        values: &[u64],
        places: Vec<PointedPlace>,
    ) -> (Vec<FileId>, bool) {
        for value in values {
            self.followed.insert(*value, ());
        }
        let (mut files, mut is_new) = (Vec::new(), false);
        for PointedPlace { path, class, file } in places {
            let place = (container.to_owned(), path.clone());
            if !self.pointed.contains_key(&place) {
                let own = self.pointed.keys().filter(|known| known.0 == container);
                if self.pointed.len() >= POINTED_PLACES_MAX
                    || own.count() >= POINTED_PER_CONTAINER_MAX
                {
                    self.unfollowed += 1;
                    continue;
                }
                self.pointed.insert(place, class);
                is_new = true;
            }
            if let Some(file) = file {
                self.homes.add(file, path);
                files.push(file);
            }
        }
        (files, is_new)
    }
}
