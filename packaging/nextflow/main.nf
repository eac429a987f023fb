// Segment and measure a folder of micrographs, one task each.
//
//     nextflow run packaging/nextflow --images 'micrographs/*.tif' --model superalloy --results results
//
// As a module: include { SEGMENT; MEASURE } from './packaging/nextflow/main.nf'

nextflow.enable.dsl = 2

params.images = 'micrographs/*.tif'
params.model = 'superalloy'
params.results = 'results'
params.flags = ''

process SEGMENT {
    tag "${image.baseName}"
    cpus 2
    publishDir params.results, mode: 'copy'

    input:
    path image
    val model

    output:
    tuple val(image.baseName), path("${image.baseName}.ome.zarr"), emit: result
    path "${image.baseName}.png", emit: picture

    script:
    """
    tilelab infer '${image}' --model '${model}' -o '${image.baseName}.ome.zarr' --overview '${image.baseName}.png' --threads ${task.cpus} ${params.flags}
    """
}

process MEASURE {
    tag "${name}"
    publishDir params.results, mode: 'copy'

    input:
    tuple val(name), path(result)

    output:
    path "${name}.csv", emit: table
    path "${name}.json", emit: numbers

    script:
    """
    tilelab measure '${result}' -o '${name}.csv' --json '${name}.json'
    """
}

workflow {
    SEGMENT(Channel.fromPath(params.images), params.model)
    MEASURE(SEGMENT.out.result)
}
