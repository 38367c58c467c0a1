//! Barriers of subgroups, as Vulkan takes them.
//!
//! naga 30 makes of WGSL's `subgroupBarrier` one that orders subgroup memory alone, a kind of memory that Vulkan has not
//! (VUID-StandaloneSpirv-OpControlBarrier-04650): the validation layer objects, and a driver may move accesses of workgroup memory,
//! through which a subgroup's lanes exchange what they have, across it. WGSL cannot ask for more; naga's own form can.

use wgpu::naga::{Barrier, Block, Module, Statement};

/// A shader's text as naga's module, whose subgroup barriers order workgroup memory too, as `subgroupBarrier` is meant: what the engine
/// hands to Vulkan drivers.
///
/// # Errors
/// What naga says of a text that it cannot read.
pub(crate) fn vulkan_module(text: &str) -> Result<Module, String> {
    let mut module = wgpu::naga::front::wgsl::parse_str(text).map_err(|e| e.emit_to_string(text))?;
    module.functions.iter_mut().for_each(|(_, function)| widen(&mut function.body));
    module.entry_points.iter_mut().for_each(|entry| widen(&mut entry.function.body));
    Ok(module)
}

fn widen(block: &mut Block) {
    for statement in block.iter_mut() {
        match statement {
            Statement::ControlBarrier(barrier) if barrier.contains(Barrier::SUB_GROUP) => {
                barrier.insert(Barrier::WORK_GROUP);
            }
            Statement::Block(inner) => widen(inner),
            Statement::If { accept, reject, .. } => [accept, reject].into_iter().for_each(widen),
            Statement::Switch { cases, .. } => cases.iter_mut().for_each(|case| widen(&mut case.body)),
            Statement::Loop { body, continuing, .. } => [body, continuing].into_iter().for_each(widen),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subgroup_barrier_orders_workgroup_memory_and_no_other_changes() {
        let text = "
            var<workgroup> x: array<u32, 64>;
            fn inner() { subgroupBarrier(); }
            @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
                x[i] = i;
                workgroupBarrier();
                for (var k = 0u; k < 2u; k++) {
                    switch k { case 0u: { subgroupBarrier(); } default: { { subgroupBarrier(); } } }
                }
                if x[0] == 0u { subgroupBarrier(); } else { storageBarrier(); }
                inner();
            }";
        let shown = format!("{:?}", vulkan_module(text).unwrap());
        let count = |barrier: Barrier| shown.matches(&format!("ControlBarrier({barrier:?})")).count();
        assert_eq!(count(Barrier::SUB_GROUP | Barrier::WORK_GROUP), 4, "{shown}");
        assert_eq!([Barrier::SUB_GROUP, Barrier::WORK_GROUP, Barrier::STORAGE].map(count), [0, 1, 1], "{shown}");
    }
}
