/*
 * Both ends of a ring as Xen's own macros make them, behind functions that the test calls.
 *
 * Nothing here is more than one macro of `io/ring.h` with the ring's type filled in. The barriers are the header's
 * to call and ours to define, since it leaves them to the system.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)

#include <xen/xen.h>
#include <xen/io/blkif.h>
#include <xen/io/netif.h>

/* A ring of words: small enough for a slot or two. */
DEFINE_RING_TYPES(words, uint32_t, uint32_t);

#define PEER(T, REQ, RSP)                                                                          \
    struct T##_front_ring *T##_front_new(struct T##_sring *shared, size_t bytes, RING_IDX start)   \
    {                                                                                              \
        struct T##_front_ring *ring = malloc(sizeof(*ring));                                       \
        SHARED_RING_INIT(shared);                                                                  \
        shared->req_prod = shared->rsp_prod = start;                                               \
        shared->req_event = shared->rsp_event = start + 1;                                         \
        FRONT_RING_ATTACH(ring, shared, start, bytes);                                             \
        return ring;                                                                               \
    }                                                                                              \
    void T##_front_free(struct T##_front_ring *ring) { free(ring); }                               \
    uint32_t T##_front_size(struct T##_front_ring *ring) { return RING_SIZE(ring); }               \
    uint32_t T##_front_room(struct T##_front_ring *ring) { return RING_FREE_REQUESTS(ring); }      \
    int T##_front_push(struct T##_front_ring *ring, const void *request)                           \
    {                                                                                              \
        if (RING_FULL(ring))                                                                       \
            return 0;                                                                              \
        memcpy(RING_GET_REQUEST(ring, ring->req_prod_pvt), request, sizeof(REQ));                  \
        ring->req_prod_pvt++;                                                                      \
        return 1;                                                                                  \
    }                                                                                              \
    int T##_front_publish(struct T##_front_ring *ring)                                             \
    {                                                                                              \
        int notify;                                                                                \
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(ring, notify);                                         \
        return notify;                                                                             \
    }                                                                                              \
    int T##_front_next(struct T##_front_ring *ring, void *response)                                \
    {                                                                                              \
        if (!RING_HAS_UNCONSUMED_RESPONSES(ring))                                                  \
            return 0;                                                                              \
        xen_rmb();                                                                                 \
        memcpy(response, RING_GET_RESPONSE(ring, ring->rsp_cons), sizeof(RSP));                    \
        ring->rsp_cons++;                                                                          \
        return 1;                                                                                  \
    }                                                                                              \
    int T##_front_arm(struct T##_front_ring *ring)                                                 \
    {                                                                                              \
        int work;                                                                                  \
        RING_FINAL_CHECK_FOR_RESPONSES(ring, work);                                                \
        return !!work;                                                                             \
    }                                                                                              \
    int T##_front_overflow(struct T##_front_ring *ring)                                            \
    {                                                                                              \
        return RING_RESPONSE_PROD_OVERFLOW(ring, ring->sring->rsp_prod);                           \
    }                                                                                              \
    struct T##_back_ring *T##_back_new(struct T##_sring *shared, size_t bytes)                     \
    {                                                                                              \
        struct T##_back_ring *ring = malloc(sizeof(*ring));                                        \
        BACK_RING_ATTACH(ring, shared, shared->rsp_prod, bytes);                                   \
        return ring;                                                                               \
    }                                                                                              \
    void T##_back_free(struct T##_back_ring *ring) { free(ring); }                                 \
    uint32_t T##_back_size(struct T##_back_ring *ring) { return RING_SIZE(ring); }                 \
    uint32_t T##_back_in_flight(struct T##_back_ring *ring)                                        \
    {                                                                                              \
        return ring->req_cons - ring->rsp_prod_pvt;                                                \
    }                                                                                              \
    int T##_back_next(struct T##_back_ring *ring, void *request)                                   \
    {                                                                                              \
        if (!RING_HAS_UNCONSUMED_REQUESTS(ring))                                                   \
            return 0;                                                                              \
        xen_rmb();                                                                                 \
        memcpy(request, RING_GET_REQUEST(ring, ring->req_cons), sizeof(REQ));                      \
        ring->req_cons++;                                                                          \
        return 1;                                                                                  \
    }                                                                                              \
    void T##_back_push(struct T##_back_ring *ring, const void *response)                           \
    {                                                                                              \
        memcpy(RING_GET_RESPONSE(ring, ring->rsp_prod_pvt), response, sizeof(RSP));                \
        ring->rsp_prod_pvt++;                                                                      \
    }                                                                                              \
    int T##_back_publish(struct T##_back_ring *ring)                                               \
    {                                                                                              \
        int notify;                                                                                \
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(ring, notify);                                        \
        return notify;                                                                             \
    }                                                                                              \
    int T##_back_arm(struct T##_back_ring *ring)                                                   \
    {                                                                                              \
        int work;                                                                                  \
        RING_FINAL_CHECK_FOR_REQUESTS(ring, work);                                                 \
        return !!work;                                                                             \
    }                                                                                              \
    int T##_back_overflow(struct T##_back_ring *ring)                                              \
    {                                                                                              \
        return RING_REQUEST_PROD_OVERFLOW(ring, ring->sring->req_prod);                            \
    }

PEER(words, uint32_t, uint32_t)
PEER(blkif, struct blkif_request, struct blkif_response)
PEER(netif_tx, struct netif_tx_request, struct netif_tx_response)
PEER(netif_rx, struct netif_rx_request, struct netif_rx_response)
PEER(xen_netif_ctrl, struct xen_netif_ctrl_request, struct xen_netif_ctrl_response)
