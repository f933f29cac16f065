//! The segments and the task state segment, which 64-bit mode uses for little more than the
//! stacks of exceptions.

use crate::memory::image;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// An index into the task state segment's list of stacks.
#[derive(Clone, Copy)]
pub enum Stack {
    /// For double faults.
    DoubleFault,
    /// For non-maskable interrupts, which may come at any instruction.
    Nmi,
    /// For page faults, which a stack overflow causes.
    PageFault,
}

static TSS: Once<TaskStateSegment> = Once::new();
static GDT: Once<GlobalDescriptorTable> = Once::new();

/// Loads the kernel's own segments.
pub fn init() {
    let tss = TSS.call_once(|| {
        let mut tss = TaskStateSegment::new();
        // A list in a packed structure cannot be borrowed.
        let mut stacks = tss.interrupt_stack_table;
        stacks[Stack::DoubleFault as usize] = VirtAddr::new(image::double_fault_stack_top());
        stacks[Stack::Nmi as usize] = VirtAddr::new(image::nmi_stack_top());
        stacks[Stack::PageFault as usize] = VirtAddr::new(image::page_fault_stack_top());
        tss.interrupt_stack_table = stacks;
        tss
    });
    let mut table = GlobalDescriptorTable::new();
    let code = table.append(Descriptor::kernel_code_segment());
    let data = table.append(Descriptor::kernel_data_segment());
    let state = table.append(Descriptor::tss_segment(tss));
    GDT.call_once(|| table).load();
    // SAFETY: the selectors are from the table just loaded, which is never freed: flat 64-bit
    // code and data like the segments before, and a task state segment.
    unsafe {
        CS::set_reg(code);
        DS::set_reg(data);
        ES::set_reg(data);
        SS::set_reg(data);
        load_tss(state);
    }
}
