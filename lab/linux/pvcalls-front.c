// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Linux's own PV Calls frontend, unchanged. Linux does not export its functions; the
 * lines below do, for pvcalls-test.
 */

#include "linux/pvcalls-front.c"

EXPORT_SYMBOL_GPL(pvcalls_front_socket);
EXPORT_SYMBOL_GPL(pvcalls_front_connect);
EXPORT_SYMBOL_GPL(pvcalls_front_bind);
EXPORT_SYMBOL_GPL(pvcalls_front_listen);
EXPORT_SYMBOL_GPL(pvcalls_front_accept);
EXPORT_SYMBOL_GPL(pvcalls_front_sendmsg);
EXPORT_SYMBOL_GPL(pvcalls_front_recvmsg);
EXPORT_SYMBOL_GPL(pvcalls_front_poll);
EXPORT_SYMBOL_GPL(pvcalls_front_release);
