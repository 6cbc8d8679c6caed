// Copyright (c) 2026, the sparkfleet.vllm authors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Instances of the skinny product with SwiGLU.
#include "skinny.cuh"

namespace sparkfleet {

SkinnyLaunch skinny_swiglu(int columns, bool swizzled, bool global_x) {
  if (columns == 8 && swizzled && !global_x) return launch_instance<1, true, true, false>;
  if (columns == 8 && swizzled && global_x) return launch_instance<1, true, true, true>;
  if (columns == 8 && !swizzled && global_x) return launch_instance<1, true, false, true>;
  if (columns == 16 && swizzled && !global_x) return launch_instance<2, true, true, false>;
  if (columns == 16 && swizzled && global_x) return launch_instance<2, true, true, true>;
  if (columns == 16 && !swizzled && global_x) return launch_instance<2, true, false, true>;
  return nullptr;
}

}  // namespace sparkfleet
