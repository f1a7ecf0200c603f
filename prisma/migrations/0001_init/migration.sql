-- CreateTable
CREATE TABLE "host" (
    "id" TEXT NOT NULL PRIMARY KEY,
    "generation" BIGINT NOT NULL,
    "options" TEXT NOT NULL,
    "created_at" BIGINT NOT NULL
);

-- CreateTable
CREATE TABLE "ended_life" (
    "host" TEXT NOT NULL,
    "generation" BIGINT NOT NULL,

    PRIMARY KEY ("host", "generation")
);

-- CreateTable
CREATE TABLE "journal" (
    "host" TEXT NOT NULL,
    "generation" BIGINT NOT NULL,
    "seq" BIGINT NOT NULL,
    "at" BIGINT NOT NULL,
    "request_id" TEXT NOT NULL,
    "op" TEXT NOT NULL,
    "call" BLOB NOT NULL,
    "digest" BLOB NOT NULL,
    "revision" BIGINT NOT NULL,

    PRIMARY KEY ("host", "generation", "seq")
);

-- CreateTable
CREATE TABLE "idempotency_key" (
    "host" TEXT NOT NULL,
    "generation" BIGINT NOT NULL,
    "key" TEXT NOT NULL,
    "body_hash" BLOB NOT NULL,
    "seq" BIGINT NOT NULL,
    "operation" TEXT,
    "answer" BLOB,

    PRIMARY KEY ("host", "generation", "key")
);

-- CreateTable
CREATE TABLE "checkpoint_section" (
    "host" TEXT NOT NULL,
    "generation" BIGINT NOT NULL,
    "key" TEXT NOT NULL,
    "seq" BIGINT NOT NULL,
    "bytes" BLOB NOT NULL,

    PRIMARY KEY ("host", "generation", "key", "seq")
);

-- CreateTable
CREATE TABLE "checkpoint_manifest" (
    "host" TEXT NOT NULL,
    "generation" BIGINT NOT NULL,
    "seq" BIGINT NOT NULL,
    "revision" BIGINT NOT NULL,
    "sections" TEXT NOT NULL,

    PRIMARY KEY ("host", "generation", "seq")
);

-- CreateTable
CREATE TABLE "projection" (
    "host" TEXT NOT NULL PRIMARY KEY,
    "generation" BIGINT NOT NULL,
    "seq" BIGINT NOT NULL
);

-- CreateTable
CREATE TABLE "task" (
    "host" TEXT NOT NULL,
    "id" TEXT NOT NULL,
    "pid" BIGINT NOT NULL,
    "mm" TEXT,
    "thread_of" TEXT,
    "alive" BOOLEAN NOT NULL,
    "rlimit_memlock" TEXT,
    "cap_ipc_lock" BOOLEAN NOT NULL,
    "locked_vm" BIGINT,

    PRIMARY KEY ("host", "id")
);

-- CreateTable
CREATE TABLE "container" (
    "host" TEXT NOT NULL,
    "id" TEXT NOT NULL,
    "iommu_type" TEXT,
    "dma_avail" BIGINT,
    "dead" TEXT,

    PRIMARY KEY ("host", "id")
);

-- CreateTable
CREATE TABLE "vfio_group" (
    "host" TEXT NOT NULL,
    "id" TEXT NOT NULL,
    "kind" TEXT NOT NULL,
    "container" TEXT,
    "open" BOOLEAN NOT NULL,

    PRIMARY KEY ("host", "id")
);

-- CreateTable
CREATE TABLE "device" (
    "host" TEXT NOT NULL,
    "id" TEXT NOT NULL,
    "vfio_group" TEXT,
    "open" BOOLEAN NOT NULL,

    PRIMARY KEY ("host", "id")
);

-- CreateTable
CREATE TABLE "notifier" (
    "host" TEXT NOT NULL,
    "id" TEXT NOT NULL,
    "device" TEXT NOT NULL,
    "container" TEXT,
    "type" BIGINT NOT NULL,
    "priority" BIGINT NOT NULL,
    "delivery" TEXT NOT NULL,
    "registered" BOOLEAN NOT NULL,

    PRIMARY KEY ("host", "device", "id")
);

-- CreateTable
CREATE TABLE "vfio_dma" (
    "host" TEXT NOT NULL,
    "slot" BIGINT NOT NULL,
    "container" TEXT NOT NULL,
    "iova" TEXT NOT NULL,
    "vaddr" TEXT NOT NULL,
    "size" TEXT NOT NULL,
    "prot" BIGINT NOT NULL,
    "task" TEXT NOT NULL,
    "npinned" BIGINT NOT NULL,

    PRIMARY KEY ("host", "slot")
);

-- CreateTable
CREATE TABLE "vfio_pfn" (
    "host" TEXT NOT NULL,
    "slot" BIGINT NOT NULL,
    "dma_slot" BIGINT NOT NULL,
    "iova" TEXT NOT NULL,
    "pfn" BIGINT NOT NULL,
    "ref_count" BIGINT NOT NULL,

    PRIMARY KEY ("host", "slot")
);

-- CreateIndex
CREATE INDEX "idempotency_key_host_generation_seq_idx" ON "idempotency_key"("host", "generation", "seq");
