// Segment and measure a folder of micrographs, one task each.
//
//     nextflow run packaging/nextflow --images 'micrographs/*.tif' --model superalloy --results results
//
// The model is a bundled name or a file (net.onnx; beside a net.xml its net.bin).
// As a module: include { SEGMENT; MEASURE; model_of } from './packaging/nextflow/main.nf'

nextflow.enable.dsl = 2

params.images = 'micrographs/*.tif'
params.model = 'superalloy'
params.results = 'results'
params.flags = ''

// What SEGMENT takes: the name for --model, and the files that a task needs for it; none for a bundled name, which has no suffix.
def model_of(name) {
    if (!name.contains('.')) {
        return [name, []]
    }
    def named = file(name, checkIfExists: true)
    def weights = file(name.replaceAll(/\.xml$/, '.bin'))
    return [named.name, name.endsWith('.xml') ? [named, weights] : [named]]
}

process SEGMENT {
    tag "${image.baseName}"
    cpus 2
    publishDir params.results, mode: 'copy'

    input:
    path image
    tuple val(model), path(files)

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
    SEGMENT(Channel.fromPath(params.images), model_of(params.model))
    MEASURE(SEGMENT.out.result)
}
