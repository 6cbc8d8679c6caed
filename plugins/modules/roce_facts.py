# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: roce_facts
short_description: Read a host's RDMA devices, ports, twins, addresses and their problems
version_added: "0.1.0"
author:
  - sparkfleet.vllm authors (@sparkfleet)
description:
  - Reads in one call what a host knows about its high-speed fabric, for each port of each RDMA device its interface,
    PCI function, physical port, twin, link state, rate, addresses and GIDs; and what is wrong with them.
  - The hardware is read from sysfs only. Addresses and the default route, which sysfs does not have, come from
    iproute2's JSON output. No privileges are needed.
  - Never fails because of what it finds. What cannot be read is V(none).
attributes:
  check_mode:
    description: Can run in check mode and return the same as outside of it.
    support: full
  diff_mode:
    description: Nothing is changed, so there is nothing to show.
    support: none
options:
  management_address:
    description:
      - The IP address that the host is managed by, as the controller knows it. The interface that holds it is listed in
        RV(roce.management), whether or not the default route leaves by it.
      - What is no IP address, for instance a host name, is ignored.
    type: str
    default: ""
  sysfs:
    description:
      - Where sysfs is mounted. Another path than the default is for tests.
    type: path
    default: /sys
  dev:
    description:
      - Where device nodes are. Another path than the default is for tests.
    type: path
    default: /dev
notes:
  - Works on any Linux host, whatever the names and the link layer of its RDMA devices. The marks are those of a DGX
    Spark, though, which are MTU 9000, links of 200 Gb/s and PCIe of 32.0 GT/s x4.
  - On a DGX Spark every QSFP port shows up twice, as two PCIe functions that carry half of its bandwidth each.
    These are called twins here.
"""

EXAMPLES = r"""
- name: Read the fabric
  sparkfleet.vllm.roce_facts:
  register: fabric

- name: Read the fabric, and tell which interfaces must not be touched
  sparkfleet.vllm.roce_facts:
    management_address: "{{ ansible_host | default('') }}"
  register: fabric

- name: Show what is wrong with it
  ansible.builtin.debug:
    msg: "{{ fabric.roce.problems | map(attribute='message') }}"

- name: Show the RDMA devices that carry
  ansible.builtin.debug:
    msg: "{{ fabric.roce.devices | selectattr('active') | map(attribute='name') }}"
"""

RETURN = r"""
roce:
  description: The facts.
  returned: always
  type: dict
  contains:
    devices:
      description: One entry for each port of each RDMA device, sorted by device.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the RDMA device.
          type: str
          sample: rocep1s0f0
        port:
          description: Number of the device's port, which is 1 unless a device has several.
          type: int
          sample: 1
        netdev:
          description: The network interface of the port.
          type: str
          sample: enp1s0f0np0
        upper:
          description: All interfaces that lie on top of it, for instance bonds and VLANs, the nearest first.
          type: list
          elements: str
          sample: [bond0, bond0.100]
        pci:
          description: PCI address of the function. V(none) for a device that is not on a PCI bus.
          type: str
          sample: "0000:01:00.0"
        physical_port:
          description:
            - The QSFP port, V(p0) or V(p1) on a DGX Spark, as the driver names it, else by the interface's
              predictable name, the PCI function or the number of the device's port. V(none) for a virtual function.
          type: str
          sample: p0
        card:
          description: The C(sys_image_guid), which all functions of one adapter share.
          type: str
          sample: 4cbb:4703:0082:0e69
        twin:
          description: Name of the RDMA device that is the other half of the same physical port.
          type: str
          sample: roceP2p1s0f0
        connectx:
          description: Whether this is an adapter of the ConnectX family.
          type: bool
          sample: true
        virtual_function:
          description: Whether this is an SR-IOV virtual function.
          type: bool
          sample: false
        active:
          description: Whether the port has carrier and the RDMA device does not deny it.
          type: bool
          sample: true
        state:
          description: Logical state of the port.
          type: str
          sample: ACTIVE
        phys_state:
          description: Physical state of the port.
          type: str
          sample: LinkUp
        carrier:
          description:
            - Whether the interface has carrier. V(none) if the interface is administratively down, as the kernel then
              refuses to say, or if there is no interface.
          type: bool
          sample: true
        operstate:
          description: Operational state of the interface.
          type: str
          sample: up
        link_layer:
          description: V(Ethernet) or V(InfiniBand).
          type: str
          sample: Ethernet
        rate_gbps:
          description: Rate of the port in Gb/s.
          type: float
          sample: 200.0
        mtu:
          description: MTU of the interface in bytes.
          type: int
          sample: 9000
        speed_mbps:
          description: Speed of the interface in Mb/s.
          type: int
          sample: 200000
        addresses:
          description: Addresses of the interface with their prefix lengths.
          type: list
          elements: str
          sample: [192.168.177.11/24]
        gids:
          description: The used slots of the port's GID table.
          type: list
          elements: dict
          contains:
            index:
              description: Number of the slot.
              type: int
              sample: 3
            type:
              description: V(IB/RoCE v1) or V(RoCE v2). V(none) on ports that do not have types.
              type: str
              sample: RoCE v2
            gid:
              description: The GID, written as an IPv6 address.
              type: str
              sample: "::ffff:192.168.177.11"
            address:
              description: The IP address that the GID stands for.
              type: str
              sample: 192.168.177.11
            netdev:
              description: The interface that has the address.
              type: str
              sample: enp1s0f0np0
        gid_index_v2_ipv4:
          description:
            - The first slot that holds an IPv4 address of the interface as RoCE v2. If the interface has addresses that
              are not link-local, only these count. The number may change at any time.
          type: int
          sample: 3
        node_guid:
          description: GUID of the function.
          type: str
          sample: 4cbb:4703:0082:0e69
        fw_ver:
          description: Firmware version.
          type: str
          sample: 28.45.4028
        hca_type:
          description: Type of the adapter.
          type: str
          sample: MT4129
        board_id:
          description: Board identification (PSID).
          type: str
          sample: NVD0000000087
        uverbs:
          description: The character device that opens the RDMA device.
          type: str
          sample: /dev/infiniband/uverbs0
        pcie_speed:
          description: Speed that the PCIe link was trained at.
          type: str
          sample: 32.0 GT/s PCIe
        pcie_width:
          description: Number of PCIe lanes in use. V(none) where the kernel does not know.
          type: int
          sample: 4
    interfaces:
      description: All network interfaces, sorted by name.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the interface.
          type: str
          sample: enP7s7
        kind:
          description: Kind of a virtual interface, for instance V(bond) or V(vlan).
          type: str
          sample: bond
        master:
          description: The bond or bridge that the interface is part of.
          type: str
          sample: bond0
        lower:
          description: The interfaces that this one is made of.
          type: list
          elements: str
          sample: [enp1s0f0np0, enP2p1s0f0np0]
        carrier:
          description: Whether the interface has carrier. V(none) if it is administratively down.
          type: bool
          sample: true
        operstate:
          description: Operational state.
          type: str
          sample: up
        mtu:
          description: MTU in bytes.
          type: int
          sample: 1500
        speed_mbps:
          description: Speed in Mb/s.
          type: int
          sample: 10000
        mac:
          description: Hardware address.
          type: str
          sample: 4c:bb:47:82:0e:68
        addresses:
          description: Addresses with their prefix lengths.
          type: list
          elements: str
          sample: [10.0.0.11/24]
    default_route:
      description: The IPv4 default route with the lowest metric. V(none) if there is no such route.
      type: dict
      contains:
        interface:
          description: The interface that it leaves by.
          type: str
          sample: enP7s7
        address:
          description: The host's own address on that interface.
          type: str
          sample: 10.0.0.11
    management:
      description:
        - The interfaces that carry management, which are that of the default route, the one that holds
          O(management_address), and what these are made of. To change one of them may cut the host off.
      type: list
      elements: str
      sample: [enP7s7]
    char_devices:
      description: The character devices that exist in C(/dev/infiniband).
      type: list
      elements: str
      sample: [/dev/infiniband/rdma_cm, /dev/infiniband/uverbs0]
    problems:
      description: What is wrong with the fabric, or costs bandwidth. Unused ports are no problem.
      type: list
      elements: dict
      contains:
        code:
          description:
            - V(no_connectx), no adapter is visible.
            - V(no_rdma), there is an adapter, but it has no RDMA device.
            - V(no_carrier), no port carries.
            - V(rdma_down), an interface has carrier, but its RDMA device denies it.
            - V(no_subnet_manager), an InfiniBand link waits for a subnet manager.
            - V(no_interface), a port that carries has no network interface.
            - V(no_addresses_read), iproute2 gave no addresses of the host.
            - V(no_address), a port that carries has no IPv4 address, or only a link-local one.
            - V(no_gid), the port's GID table lacks its IPv4 address as RoCE v2.
            - V(mtu), the MTU is not 9000.
            - V(mtu_mixed), the MTU is another than on the first port.
            - V(rate), the link is slower than 200 Gb/s.
            - V(pcie_link), the PCIe link carries less than 32.0 GT/s x4 do, and less than the port could.
            - V(pcie_degraded), the PCIe link carries 20 Gb/s or less, the class of degraded cards that owners
              measured 13 Gb/s on.
            - V(twin_missing), other ports have a twin, this one does not.
            - V(twin_down), the twin does not carry.
            - V(twins_one_subnet), both twins are in one subnet.
            - V(twin_mtu), the twins have different MTUs.
            - V(bonded_twins), the twins are in one bond.
          type: str
          sample: twin_down
        device:
          description: Name of the RDMA device. V(none) if the problem is the host's.
          type: str
          sample: rocep1s0f0
        message:
          description: What is wrong.
          type: str
          sample: "enp1s0f0np0: its twin enP2p1s0f0np0 is down administratively; half of the port's bandwidth is lost"
        remedy:
          description: What to do about it.
          type: str
          sample: run 'ip link set enP2p1s0f0np0 up' and name it in /etc/netplan/40-cx7.yaml
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils._roce import SysfsReader, read


def _ip(module: AnsibleModule, arguments: list[str]) -> str | None:
    """Return the output of ``ip -j``, None where iproute2 is missing or refuses."""
    program = module.get_bin_path("ip")  # also looks into the sbin directories
    if program is None:
        return None
    rc, out, _err = module.run_command([program, "-j", *arguments], handle_exceptions=False)
    return out if rc == 0 else None


def main() -> None:
    """Read the facts and return them."""
    module = AnsibleModule(
        argument_spec={
            "management_address": {"type": "str", "default": ""},
            "sysfs": {"type": "path", "default": "/sys"},
            "dev": {"type": "path", "default": "/dev"},
        },
        supports_check_mode=True,
    )
    try:
        addresses, routes = _ip(module, ["-d", "addr", "show"]), _ip(module, ["-4", "route", "show", "default"])
    except OSError:
        addresses, routes = None, None
    reader = SysfsReader(module.params["sysfs"], module.params["dev"])
    roce = read(reader, addresses, routes, module.params["management_address"])
    module.exit_json(changed=False, roce=roce)


if __name__ == "__main__":
    main()
